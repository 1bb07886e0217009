"""Checkpoints that are whole or not there: written to the end before they take the place of the last one.

A folder holds last.pt, previous.pt (the one before) and best.pt (weights alone). Every file is a dict for torch.load
with weights_only=True, whose entry "model" is a state dict.
"""

import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..console.errors import UserError

FORMAT, VERSION = "ulsam_fused.train", 1
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
_ENTRIES = {
    "identity", "options", "epoch", "step", "totals", "best", "broken", "model", "optimizer", "scaler", "average",
}  # fmt: skip


def save(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Make `content` the last checkpoint, and the last one the previous one."""
    new = _write(folder / LAST, {"format": FORMAT, "version": VERSION, **content})
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    _move(new, folder / LAST)


def save_weights(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    _move(_write(folder / BEST, content), folder / BEST)


def load(path: pathlib.Path) -> dict[str, Any]:
    """A checkpoint of this format, on the CPU.

    Raises:
        UserError: no such file; truncated or damaged; not of this program or of this version. Names the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has another checksum than it should")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, by where the bytes stop making sense
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: truncated, damaged or no checkpoint ({type(error).__name__}: {reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: holds tensors, but is no checkpoint of {FORMAT}; --weights takes weights alone")
    if content.get("version") != VERSION:
        raise UserError(f"{path}: a checkpoint of version {content.get('version')}, and this program knows {VERSION}")
    lacking = sorted(_ENTRIES - content.keys())
    if lacking:
        raise UserError(f"{path}: a checkpoint without {', '.join(lacking)}")
    return content


def latest(folder: pathlib.Path, notice: Callable[[str], None]) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The last good checkpoint of a folder; None where there is none at all.

    A bad one is told to `notice`, and renamed to NAME.damaged so that it will not become the previous one.

    Raises:
        UserError: there are checkpoints, and none is good.
    """
    problems = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            content = load(path)
        except UserError as error:
            problems.append((path, str(error)))
            continue
        for bad, problem in problems:
            notice(f"{problem}; renamed to {bad.name}.damaged, and {path.name} is used")
            os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
        return path, content
    if problems:
        reasons = "; ".join(problem for _, problem in problems)
        raise UserError(f"no good checkpoint to resume from: {reasons}. Move them away to start anew")
    return None


def check_identity(path: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises UserError where a checkpoint is of another training than the one that was asked for."""
    for name in here:
        if there.get(name) != here[name]:
            raise UserError(
                f"{path}: of another training: {name} was {_short(there.get(name))} and is {_short(here[name])} here; "
                "use the same options, or another --output"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _write(target: pathlib.Path, content: Mapping[str, Any]) -> pathlib.Path:
    """The content in a file beside its target, on the disk to the last byte."""
    path = target.with_name(f".{target.name}.new")
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    return path


def _move(new: pathlib.Path, target: pathlib.Path) -> None:
    os.replace(new, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
