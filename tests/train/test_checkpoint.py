"""Checkpoints: whole or not there, and errors that name the file and the reason."""

import errno
import os
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


@pytest.mark.parametrize("moment", ["syncing", "replacing 0", "replacing 1"])
def test_a_crash_at_any_moment_leaves_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    _saved(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        replace, replaced = os.replace, []

        def fail(*_: object) -> None:
            raise OSError("the power has gone")

        def nth(*paths: Path) -> None:
            if len(replaced) == int(moment[-1]):
                fail()
            replaced.append(paths)
            replace(*paths)

        if moment == "syncing":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "replace", nth)
        with pytest.raises(UserError, match=r"last\.pt: cannot be written: the power"):
            _saved(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))
    notices: list[str] = []
    found = checkpoint.latest(tmp_path, notices.append)
    assert found is not None
    assert found.content["epoch"] == 2
    assert notices == []


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    _saved(tmp_path, 1, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a file that is larger cannot be written
    try:
        with pytest.raises(UserError, match=r"^\S+last\.pt: cannot be written: [^\n]+$"):
            _saved(tmp_path, 3)
        with pytest.raises(UserError, match=r"best\.pt: cannot be written"):
            checkpoint.save_weights(tmp_path, CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("refused", ["opening", "syncing"])
def test_a_file_system_that_syncs_no_folder_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Windows opens none; some network file systems sync none, and some sync no file either."""
    opened = os.open

    def no_folder(path: Path, *rest: int, **more: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    def no_sync(number: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, *(("open", no_folder) if refused == "opening" else ("fsync", no_sync)))
    _saved(tmp_path, 1, 2)
    assert [checkpoint.load(tmp_path / name)["epoch"] for name in ("last.pt", "previous.pt")] == [2, 1]


def test_a_folder_that_was_removed_is_made_again_and_its_name_need_not_be_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xe9sultats") / "deep"
    _saved(folder, 4)
    assert checkpoint.load(folder / "last.pt")["epoch"] == 4


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
