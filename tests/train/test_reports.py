"""Nothing that happens while reporting costs an epoch: the checkpoint comes first, and no report ends a training."""

import csv
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.train_folders import SMALL, imagefolder
from ulsam_fused.console.output import Attempts
from ulsam_fused.train import checkpoint
from ulsam_fused.train.__main__ import main
from ulsam_fused.train.logs import COLUMNS, Logs
from ulsam_fused.train.loop import Loop
from ulsam_fused.train.processes import SIGNALS, Processes, Stop
from ulsam_fused.train.run import _Training

BROKEN, CLASS = os.fsdecode(b"br\xe9ken.jpg"), os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four images; one class, and one broken image, has a name that is not UTF-8."""
    root = imagefolder(tmp_path_factory.mktemp("data"), 4, 2)
    for folder in ("train", "val"):
        (root / folder / "b").rename(root / folder / CLASS)
    (root / "train" / CLASS / BROKEN).write_bytes(b"torn")
    return root


def _options(data: Path, folder: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(folder), *SMALL, "--epochs", "1", "--max-broken", "0.5", *more]


def _saved(folder: Path) -> checkpoint.Content:
    return checkpoint.load(folder / "last.pt")


class Unwritable(io.StringIO):
    """As a terminal that has gone, or a full disk."""

    def write(self, _: str) -> int:
        raise OSError(5, "Input/output error")


def test_names_that_are_no_text_and_an_ascii_output(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    assert main(_options(data, tmp_path / os.fsdecode(b"\xe9"), "--limit-steps", "2")) == 0
    text = printed.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "2 classes: a, caf\\udce9" in text
    assert "1 images missing or broken" in text
    folder = tmp_path / os.fsdecode(b"\xe9")
    assert "br\\udce9ken.jpg: UnidentifiedImageError" in (folder / "broken.txt").read_text(encoding="utf-8")
    assert list(_saved(folder)["broken"]["train"]) == [8]
    assert main(_options(data, folder, "--limit-steps", "2")) == 0


def test_no_report_ends_a_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output, log.csv, broken.txt and TensorBoard cannot be written; the weights are what they would be."""
    writers = pytest.importorskip("torch.utils.tensorboard")

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert "tensorboard" in folder

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the events' folder has gone")

    monkeypatch.setattr(writers, "SummaryWriter", Writer)
    straight, hindered = tmp_path / "straight", tmp_path / "hindered"
    assert main(_options(data, straight)) == 0
    for name in ("log.csv", "broken.txt"):
        (hindered / name).mkdir(parents=True)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Unwritable())
        assert main([word for word in _options(data, hindered) if word != "--no-tensorboard"]) == 0
    errors = capsys.readouterr().err.splitlines()
    told = [Path(line.split(":")[0]).name for line in errors]
    assert told == ["standard output", "log.csv", "TensorBoard", "broken.txt"]
    first, second = _saved(straight), _saved(hindered)
    assert (second["epoch"], second["best"]) == (1, first["best"])
    for name, t in first["model"].items():
        assert torch.equal(second["model"][name], t), name


def test_the_checkpoint_comes_before_all_reports(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(self: _Training, *_: object) -> None:
        saved = _saved(tmp_path)
        assert (saved["epoch"], saved["step"]) == (1, 0)
        assert saved["broken"]["train"]
        assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(_Training, "_report", report)
    assert main(_options(data, tmp_path)) == 130


def test_a_best_that_cannot_be_written_does_not_cost_the_epoch(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.pt").mkdir()
    assert main(_options(data, tmp_path)) == 0
    assert "best.pt: " in capsys.readouterr().err
    assert (_saved(tmp_path)["epoch"], _saved(tmp_path)["best"]) == (1, -1)


def test_a_full_disk_ends_a_training_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    assert main(_options(data, tmp_path, "--limit-steps", "1")) == 0
    before = (tmp_path / "last.pt").read_bytes()
    arguments = _options(data, tmp_path, "--limit-steps", "1", "--epochs", "2", "--resume", "none")
    (tmp_path / "last.pt").rename(tmp_path / "kept.pt")
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        assert main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("ulsam_fused.train: error: ")
    assert "last.pt: cannot be written: " in last
    assert not list(tmp_path.glob(".*.new"))
    assert (tmp_path / "kept.pt").read_bytes() == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_stops(
    number: signal.Signals, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    step = Loop._step

    def signalled(self: Loop, epoch: int, at: int, *rest: Any) -> torch.Tensor:
        os.kill(os.getpid(), number)
        return step(self, epoch, at, *rest)

    signal.signal(number, signal.SIG_DFL)  # pytest itself may run under nohup
    monkeypatch.setattr(Loop, "_step", signalled)
    assert main(_options(data, tmp_path)) == 143
    assert f"stopped by {number.name}, saved at epoch 0, step 1" in capsys.readouterr().out
    assert (_saved(tmp_path)["epoch"], _saved(tmp_path)["step"]) == (0, 1)


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup` has SIGHUP ignored, and a training under it outlives its terminal."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Stop(Processes(0, 1, torch.device("cpu"), None)).listen()
    assert all(signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS)


def test_too_many_broken_images_cost_no_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the test set they are met after the epoch's last step, which is then saved."""
    root = imagefolder(tmp_path / "data", 4, 2)
    (root / "val/b/0.png").write_bytes(b"torn")
    arguments = [*_options(root, tmp_path / "out"), "--max-broken", "0"]
    assert main(arguments) == 2
    assert "1 of 4 images for val are missing or broken" in capsys.readouterr().err
    assert (_saved(tmp_path / "out")["epoch"], _saved(tmp_path / "out")["step"]) == (0, 2)
    monkeypatch.setattr(Loop, "_step", None)  # no step is left to do
    assert main([*arguments, "--max-broken", "0.25"]) == 0


ROWS = "".join(f"{epoch},{'0.5,' * 11}{epoch}.0\r\n" for epoch in range(3))
HEAD = ",".join(COLUMNS) + "\r\n"


LOGS = (  # content, rows before epoch 2, whether it has other lines
    ((HEAD + ROWS).encode(), 2, False),
    (b"", 0, False),
    (b"\xef\xbb\xbf" + (HEAD + ROWS).encode(), 2, False),
    ((HEAD + ROWS).replace(",", ";").encode(), 2, False),
    ((HEAD + ROWS).replace(",", "\t").encode("utf-8-sig"), 2, False),
    ((HEAD + ROWS)[:-60].encode(), 2, False),
    ((HEAD + ROWS).encode() + b"\0" * 100, 2, True),
    (b"\0" * 100, 0, True),
    ((HEAD + ROWS).replace("1,0.5", "x,0.5").encode(), 1, True),
    (HEAD.encode() + b"\xff\xfe\xe9\r\n" + ROWS.encode(), 2, True),
    (b"hello", 0, True),
)


def test_a_log_that_passed_through_a_spreadsheet_or_a_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, aside = tmp_path / "log.csv", tmp_path / "log.csv.damaged"
    for content, kept, damaged in LOGS:
        aside.unlink(missing_ok=True)
        path.write_bytes(content)
        Logs(tmp_path, 2, 0, False, Attempts())
        rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
        assert len(rows) == kept, content
        assert all(list(row) == list(COLUMNS) and row["lr"] == "0.5" for row in rows)
        assert ("kept as log.csv.damaged" in capsys.readouterr().err) == damaged, content
        assert (aside.read_bytes() if aside.exists() else None) == (content if damaged else None)


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    logs = Logs(folder, 0, 0, False, Attempts())
    logs.epoch(0, 1, 0.5, {}, 0, 1.0)
    (folder / "log.csv").unlink()
    folder.rmdir()
    logs.epoch(1, 2, 0.25, {}, 0, 1.0)
    assert [row["lr"] for row in csv.DictReader((folder / "log.csv").open())] == ["0.5", "0.25"]


def test_tensorboard_that_fails_is_left_out_and_prints_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    logs = Logs(tmp_path, 0, 0, True, Attempts())
    assert logs.writer is not None
    writer: Any = logs.writer.file_writer.event_writer
    writer._general_file_writer.close()  # as a disk that refuses

    def refuse(_: bytes) -> None:
        raise OSError("the disk has gone")

    writer._async_writer._writer.write = refuse
    for step in range(50):  # more than the queue holds
        logs.scalar("x", 1.0, step)
    logs.epoch(0, 50, 0.5, {}, 0, 1.0)
    logs.close()
    assert logs.writer is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("TensorBoard: ")
    assert len(list(csv.DictReader((tmp_path / "log.csv").open()))) == 1


def test_tensorboard_that_cannot_be_imported_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([word for word in _options(data, tmp_path) if word != "--no-tensorboard"]) == 2
    assert "pip install tensorboard, or --no-tensorboard" in capsys.readouterr().err


def test_a_failure_is_told_once_until_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    attempts, failing = Attempts(), True

    def act() -> None:
        if failing:
            raise ValueError("no\nand more")

    assert [attempts("x", act), attempts("x", act)] == [False, False]
    failing = False
    assert attempts("x", act)
    failing = True
    assert not attempts("x", act)
    assert capsys.readouterr().err == "x: ValueError: no; this is left out, and the work goes on\n" * 2
