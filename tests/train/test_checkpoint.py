"""Checkpoints: whole or not there, and errors that name the file and the reason."""

import os
import sys
from pathlib import Path

import pytest
import torch

from ulsam_fused.console.errors import UserError
from ulsam_fused.train import checkpoint

CONTENT = {
    "identity": {"lr": 0.05, "insert": {17: 4}}, "options": {}, "epoch": 3, "step": 2,
    "totals": torch.ones(4), "best": 1.0,
    "broken": {"train": {3: "torn"}, "val": {}}, "model": {"w": torch.randn(500)}, "optimizer": {"state": {}},
    "scaler": {}, "average": None,
}  # fmt: skip


def _saved(folder: Path, *epochs: int) -> None:
    for epoch in epochs:
        checkpoint.save(folder, CONTENT | {"epoch": epoch})


def test_what_was_saved_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2, 3)
    content = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(content["model"]["w"], CONTENT["model"]["w"])
    assert content["broken"] == CONTENT["broken"]
    assert content["identity"] == CONTENT["identity"]
    assert (content["epoch"], checkpoint.load(tmp_path / "previous.pt")["epoch"]) == (3, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_on_windows_where_a_folder_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", refuse)
    _saved(tmp_path, 1, 2)
    assert checkpoint.load(tmp_path / "last.pt")["epoch"] == 2


@pytest.mark.parametrize("moment", ["writing", "syncing", "replacing 0", "replacing 1"])
def test_a_crash_at_any_moment_leaves_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    _saved(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        save, replace, replaced = torch.save, os.replace, []

        def half(content: object, file: object) -> None:
            save(content, file)
            file.truncate(1000)
            raise OSError("the disk is full")

        def fail(*_: object) -> None:
            raise OSError("the power has gone")

        def nth(*paths: Path) -> None:
            if len(replaced) == int(moment[-1]):
                fail()
            replaced.append(paths)
            replace(*paths)

        if moment == "writing":
            patch.setattr(torch, "save", half)
        elif moment == "syncing":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "replace", nth)
        with pytest.raises(OSError, match=r"disk|power"):
            _saved(tmp_path, 3)
    notices: list[str] = []
    found = checkpoint.latest(tmp_path, notices.append)
    assert found is not None
    assert found[1]["epoch"] == 2
    assert notices == []


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(CONTENT["model"]["w"].numpy().tobytes()) + 100
    content[place] ^= 1
    path.write_bytes(content)


BAD = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "one bit": _flip,
    "weights": lambda path: torch.save({"w": torch.ones(3)}, path),
    "pickled code": lambda path: torch.save({"format": checkpoint.FORMAT, "path": path}, path),
    "version": lambda path: torch.save(CONTENT | {"format": checkpoint.FORMAT, "version": 99}, path),
    "lacking": lambda path: torch.save({"format": checkpoint.FORMAT, "version": 1, "model": {}}, path),
}
REASONS = {
    "weights": "is no checkpoint of ulsam_fused.train", "version": "of version 99", "lacking": "without average, best",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_the_previous_one_is_used_where_the_last_is_bad(tmp_path: Path, kind: str) -> None:
    _saved(tmp_path, 1, 2)
    BAD[kind](tmp_path / "last.pt")
    reason = REASONS.get(kind, "truncated, damaged or no checkpoint")
    with pytest.raises(UserError, match=rf"last\.pt: .*{reason}"):
        checkpoint.load(tmp_path / "last.pt")
    notices: list[str] = []
    path, content = checkpoint.latest(tmp_path, notices.append) or (None, {})
    assert path == tmp_path / "previous.pt"
    assert content["epoch"] == 1
    (notice,) = notices
    assert str(tmp_path / "last.pt") in notice
    assert reason in notice
    _saved(tmp_path, 5)  # the good one must not be replaced by the bad one
    assert checkpoint.load(tmp_path / "previous.pt")["epoch"] == 1
    assert (tmp_path / "last.pt.damaged").exists()


def test_none_good_is_an_error_and_none_at_all_is_a_start(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, print) is None
    _saved(tmp_path, 1, 2)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"no good checkpoint.*last\.pt.*previous\.pt"):
        checkpoint.latest(tmp_path, print)
    assert (tmp_path / "last.pt").exists()


def test_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint.check_identity(tmp_path, {"lr": 0.05, "more": 1}, {"lr": 0.05})
    with pytest.raises(UserError, match=r"lr was 0\.05 and is 0\.1 here"):
        checkpoint.check_identity(tmp_path, {"lr": 0.05}, {"lr": 0.1})
