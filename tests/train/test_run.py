"""The training command from its options to its files; what it resumes is what it would have been, bit for bit."""

import contextlib
import csv
import io
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

import ulsam_fused as uf
from tests.helpers import train_script
from tests.helpers.processes import ROOT, run_python
from tests.helpers.train_folders import SMALL, imagefolder
from ulsam_fused.console.images import MEAN, STD
from ulsam_fused.train import dataset, dataset_folders, recipe
from ulsam_fused.train.__main__ import main
from ulsam_fused.train.loop import Loop

ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imagefolder(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True, scope="module")
def _process() -> Iterator[None]:
    """One thread, as in the scripts: the bits depend on it. Threads and SIGTERM are left as they were."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


def _options(data: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(output), *SMALL, "--epochs", "2", "--ema", "0.9", *more]


def _stopped(when: str, arguments: list[str]) -> None:
    """A training in this process that sends itself SIGTERM."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_step", "_score"):
            patch.setattr(Loop, name, getattr(Loop, name))  # what is put in their place goes with the context
        train_script.terminated(when)
        assert main(arguments) == 143


def _same(a: Any, b: Any, where: str = "") -> None:
    """Of the same structure and the same bits."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            _same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            _same(*pair, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def _same_training(a: Path, b: Path) -> None:
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (a, b)]
    for state in states:
        del state["options"]  # paths
    _same(*states)
    rows = [list(csv.DictReader((folder / "log.csv").open())) for folder in (a, b)]
    for row in rows[0] + rows[1]:
        del row["seconds"]
    assert rows[0] == rows[1]


class Straight(NamedTuple):
    """A training that nothing stops."""

    output: Path
    printed: str
    rates: list[float]  # of each step


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    output, printed, rates = tmp_path_factory.mktemp("straight") / "out", io.StringIO(), []
    set_rate = recipe.set_rate

    def record(optimizer: torch.optim.Optimizer, rate: float) -> None:
        set_rate(optimizer, rate)
        rates.append(optimizer.param_groups[0]["lr"])

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(recipe, "set_rate", record)
        assert main(_options(data, output)) == 0
    return Straight(output, printed.getvalue(), rates)


@pytest.fixture
def copied(straight: Straight, tmp_path: Path) -> Path:
    """A copy of its output, to be changed."""
    return shutil.copytree(straight.output, tmp_path / "out")


def test_a_training_leaves_checkpoints_logs_and_scores(data: Path, straight: Straight, copied: Path) -> None:
    assert "reader: pillow" in straight.printed
    assert "ULSAM after layer 14 (g=4)" in straight.printed
    assert "2 epochs of 5 steps of 4 images" in straight.printed
    assert "epoch 1 val: loss" in straight.printed
    assert "of 10 images" in straight.printed
    rows = list(csv.DictReader((copied / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(row["val_top5"] == "100.000" and row["ema_top1"] for row in rows)
    names = {"last.pt", "previous.pt", "best.pt", "log.csv"}
    assert {path.name for path in copied.iterdir()} == names
    best = torch.load(copied / "best.pt", weights_only=True)
    assert "features.13.ulsam.dw_weight" in best["model"]
    assert best["top1"] == max(float(row["ema_top1"]) for row in rows)
    assert main(_options(data, copied)) == 0  # nothing is left to do
    _same_training(copied, straight.output)


def test_each_step_has_its_learning_rate(straight: Straight) -> None:
    assert straight.rates == pytest.approx([0.025 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])


@pytest.mark.slow  # a process that imports PyTorch: nothing but the files may be left of the first one
def test_stopped_and_resumed_in_another_process_it_is_the_same_bit_for_bit(
    data: Path, tmp_path: Path, straight: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _options(data, tmp_path)
    _stopped("0:0:1", [*arguments, "--workers", "2"])
    assert "stopped by SIGTERM, saved at epoch 0, step 2" in capsys.readouterr().out
    printed = run_python([train_script.__file__, "never", *arguments], ROOT, ENV)
    assert f"resumed from {tmp_path / 'last.pt'}: epoch 0, step 2" in printed
    _same_training(tmp_path, straight.output)


@pytest.mark.slow  # two trainings, for each moment
@pytest.mark.parametrize(("when", "saved"), [("0:1:4", (1, 5)), ("0:test", (0, 5))])
def test_stopped_by_sigterm_after_a_last_step_and_resumed_it_is_the_same_bit_for_bit(
    data: Path, tmp_path: Path, straight: Straight, when: str, saved: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = _options(data, tmp_path)
    _stopped(when, arguments)
    assert "stopped by SIGTERM, saved at epoch {}, step {}".format(*saved) in capsys.readouterr().out
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (content["epoch"], content["step"]) == saved
    torch.manual_seed(9)  # the state of the generator is nothing to rely on
    assert main(arguments) == 0
    assert "resumed from" in capsys.readouterr().out
    _same_training(tmp_path, straight.output)


@pytest.mark.slow  # three trainings
def test_another_seed_is_another_training(data: Path, tmp_path: Path) -> None:
    models = []
    for output, seed in (("first", 0), ("again", 0), ("other", 1)):
        short = ["--epochs", "1", "--limit-steps", "1", "--seed", str(seed)]
        assert main(_options(data, tmp_path / output, *short)) == 0
        models.append(torch.load(tmp_path / output / "last.pt", weights_only=True)["model"])
    first, again, other = models
    _same(first, again)
    with pytest.raises(AssertionError):
        _same(first, other)


def test_a_truncated_checkpoint_is_told_and_the_previous_one_used(
    data: Path, straight: Straight, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "last.pt").write_bytes((copied / "last.pt").read_bytes()[:-1000])
    assert main(_options(data, copied)) == 0
    printed = capsys.readouterr().out
    assert "last.pt: truncated, damaged or no checkpoint" in printed
    assert f"resumed from {copied / 'previous.pt'}: epoch 1, step 0" in printed
    _same_training(copied, straight.output)


def test_broken_images_are_named_and_too_many_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = imagefolder(tmp_path / "data", val=2)
    (data / "train/a/3.jpg").write_bytes(b"torn")
    arguments = _options(data, tmp_path / "out", "--epochs", "1")
    assert main(arguments) == 2
    assert "1 of 20 images for train are missing or broken" in capsys.readouterr().err
    assert main([*arguments, "--max-broken", "0.05"]) == 0
    assert "1 images missing or broken, left out and named in" in capsys.readouterr().out
    assert "a/3.jpg: UnidentifiedImageError" in (tmp_path / "out/broken.txt").read_text()
    (row,) = csv.DictReader((tmp_path / "out/log.csv").open())
    assert row["broken"] == "1"


@pytest.mark.slow  # a training for each type
@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_and_the_other_options_train(data: Path, tmp_path: Path, amp: str) -> None:
    more = ["--amp", amp, "--epochs", "1", "--limit-steps", "2", "--no-norm-decay", "--label-smoothing", "0.1",
            "--attention", "upstream", "--optimizer", "rmsprop", "--lr", "0.001", "--sync-bn",
            "--no-channels-last"]  # fmt: skip
    assert main(_options(data, tmp_path, *more)) == 0
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert bool(content["scaler"]) == (amp == "float16")
    assert content["model"]["features.0.1.num_batches_tracked"] == 2


def test_tensorboard_gets_the_scores(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = [word for word in _options(data, tmp_path, "--epochs", "1") if word != "--no-tensorboard"]
    assert main(arguments) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"step/loss", "loss/train", "top1/val", "top5/ema", "lr"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("step/loss")) == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "64"], "20 training images do not fill one batch of 64"),
        (["--resume", "absent.pt"], "absent.pt: no such file"),
        (["--insert", "3=7"], "insert, layer 3"),
        (["--lr", "inf"], "must be from 0"),
    ],
)
def test_errors_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(_options(data, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_with_a_training_is_not_overwritten(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _options(data, tmp_path, "--epochs", "1", "--limit-steps", "1")
    assert main(arguments) == 0
    assert main([*arguments, "--resume", "none"]) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert main([*arguments, "--lr", "0.5"]) == 2
    assert "lr was 0.05 and is 0.5 here" in capsys.readouterr().err
    assert main([*arguments, "--resume", str(tmp_path / "last.pt")]) == 0


@pytest.mark.slow  # torchrun starts two processes that import PyTorch
def test_two_processes_by_torchrun(data: Path, tmp_path: Path) -> None:
    """SIGTERM that comes to one of them stops both at one step; resumed, they end as they would have."""
    outputs = [tmp_path / "straight", tmp_path / "stopped"]
    straight, stopped = (_options(data, output, "--batch-size", "2", "--epochs", "1") for output in outputs)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", train_script.__file__]
    words = ["never", *straight, "--", "1:0:1", *stopped, "--", "never", *stopped]
    printed = run_python([*launcher, *words], ROOT, ENV)
    first, second, third = printed.split("2 process(es)")[1:]
    assert "1 epochs of 5 steps of 4 images" in first
    assert "epoch 0 val: loss" in first
    assert first.count("of 10 images") == 2  # val and ema, each image once
    assert first.count("epoch 0 step 3/5") == 1
    assert "stopped by SIGTERM, saved at epoch 0, step 3" in second
    assert printed.count("exit code 143") == 2
    assert "epoch 0, step 3" in third
    states = [torch.load(output / "last.pt", weights_only=True) for output in outputs]
    for name in ("model", "optimizer", "average", "best"):
        _same(states[0][name], states[1][name], name)
    (row,) = csv.DictReader((outputs[0] / "log.csv").open())
    assert float(row["val_loss"]) == pytest.approx(_loss(data, states[0]["model"]), abs=1e-4)


def _loss(data: Path, state: dict[str, torch.Tensor]) -> float:
    """Of saved weights over the test images, in one process."""
    model = uf.models.mobilenet_v2(0.1, insert={14: 4}, num_classes=2)
    model.load_state_dict(state)
    images = dataset_folders.read("imagefolder", data).val
    views = dataset.Views(images, "pillow", 32, 36, 0, training=False)
    x = torch.stack([views[dataset.Place(0, number)].view for number in range(len(images))]) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        return float(F.cross_entropy(model.eval()((x - mean) / std), torch.tensor(images.labels)))
