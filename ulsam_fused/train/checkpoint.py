"""Checkpoints. Each is written to a new file, which is then renamed, so no crash leaves half a file under its name.

A folder holds last.pt, previous.pt (the one before) and best.pt (weights alone). Every file is a dict for torch.load
with weights_only=True; its entry "model" is a state dict.
"""

import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from ..console.errors import UserError, one_line

FORMAT, VERSION = "ulsam_fused.train", 1
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class Content(TypedDict):
    """What a training needs to continue."""

    identity: dict[str, object]  # the options and data that make it this training
    options: dict[str, str | None]  # the whole command line, for a reader
    epoch: int
    step: int  # the next one in this epoch
    totals: Tensor  # `metrics.Totals.sums` of this epoch so far
    best: float  # best top-1 accuracy so far, in percent
    broken: dict[str, dict[int, str]]  # `unreadable.Broken.found`
    model: dict[str, Any]  # state dicts from here on
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    average: dict[str, Any] | None


class Checkpoint(NamedTuple):
    """A file and what it holds."""

    path: pathlib.Path
    content: Content


def save(folder: pathlib.Path, content: Content) -> None:
    """Write last.pt; the file that had this name becomes previous.pt."""
    new = _write(folder / LAST, {"format": FORMAT, "version": VERSION, **content})
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    _move(new, folder / LAST)


def save_weights(folder: pathlib.Path, content: Mapping[str, object]) -> None:
    """Write best.pt."""
    _move(_write(folder / BEST, content), folder / BEST)


def load(path: pathlib.Path) -> Content:
    """A checkpoint of this format, on the CPU.

    Raises:
        UserError: no such file; a truncated or damaged one; one of another program or version. It names the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its type depends on where the file is damaged
        raise UserError(f"{path}: truncated, damaged or no checkpoint ({one_line(error)})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is no checkpoint of {FORMAT}; --weights takes files that hold weights alone")
    if content.get("version") != VERSION:
        raise UserError(f"{path}: is a checkpoint of version {content.get('version')}; this program reads {VERSION}")
    lacking = sorted(Content.__annotations__.keys() - content.keys())
    if lacking:
        raise UserError(f"{path}: is a checkpoint without {', '.join(lacking)}")
    return cast(Content, content)


def latest(folder: pathlib.Path, notice: Callable[[str], None]) -> Checkpoint | None:
    """The last good checkpoint of a folder; None if it has none at all.

    A bad one is reported to `notice` and renamed to NAME.damaged, so that `save` does not keep it as previous.pt.

    Raises:
        UserError: there are checkpoints, and none is good.
    """
    problems: dict[pathlib.Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            content = load(path)
        except UserError as error:
            problems[path] = str(error)
            continue
        for bad, problem in problems.items():
            notice(f"{problem}; renamed to {bad.name}.damaged, and {path.name} is used")
            os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
        return Checkpoint(path, content)
    if problems:
        reasons = "; ".join(problems.values())
        raise UserError(f"no good checkpoint to resume from: {reasons}. Move them away to start anew")
    return None


def check_identity(path: pathlib.Path, there: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Raises UserError if the checkpoint belongs to another training than the one that was asked for."""
    for name in here:
        if there.get(name) != here[name]:
            raise UserError(
                f"{path}: belongs to another training: {name} was {_short(there.get(name))} and is "
                f"{_short(here[name])} here; use the same options, or another --output"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _write(target: pathlib.Path, content: Mapping[str, object]) -> pathlib.Path:
    """Write the content to a new file beside the target, and wait until the disk has it."""
    path = target.with_name(f".{target.name}.new")
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    return path


def _move(new: pathlib.Path, target: pathlib.Path) -> None:
    """Rename, and wait until the disk has the new name."""
    os.replace(new, target)
    if sys.platform == "win32":  # where a folder cannot be opened
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
