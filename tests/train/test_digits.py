"""The example with scikit-learn's digits, shortened: in one process and in two."""

import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.helpers.processes import ROOT, run_python

pytest.importorskip("sklearn")
EXAMPLE = ROOT / "examples" / "digits.py"
SHORT = ["--epochs", "3", "--batch", "32", "--steps", "8", "--orders", "2"]


@pytest.fixture(scope="module")
def digits() -> Iterator[ModuleType]:
    """The example as a module, with one thread: several would wait for one another on a busy machine."""
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.mark.slow  # trains four networks for 8 steps, and one until it recognises the digits
def test_fused_layers_train_as_the_reference_does(digits: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = digits.main(SHORT), capsys.readouterr().out
    assert code == 0, printed
    assert "fused against reference, 8 steps" in printed
    assert "\nproven: 9" in printed


TOGETHER = """
import sys
import digits
import torch._dynamo  # else each process imports it
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
codes = elastic_launch(config, digits.main)(sys.argv[1:])
sys.exit(max(codes.values()))
"""
"""What torchrun does, but that its processes do not each import PyTorch."""


@pytest.mark.slow  # the same by a process that imports PyTorch, and two children
def test_two_processes_train_as_one_does() -> None:
    path = os.pathsep.join(map(str, (ROOT, EXAMPLE.parent)))
    printed = run_python(["-c", TOGETHER, *SHORT], ROOT, {"OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    assert "2 processes against one, 8 steps" in printed
    assert "\nproven: 9" in printed


def test_layers_that_hand_x_on_are_noticed(digits: ModuleType) -> None:
    x, labels = digits.digits()

    def identity(numbers: list[torch.Tensor]) -> torch.Tensor:
        model = digits.network()
        for number in digits.INSERT:
            model.features[number - 1].ulsam = nn.Identity()
        return digits.losses(model, x, labels, numbers)

    share, _, _ = digits.compare(identity, x, labels, 3, 32, 2, 1)
    assert share > 10


def test_parts_are_what_several_processes_do_and_not_the_joined_batch(digits: ModuleType) -> None:
    """So the comparison of two processes with one does tell something."""
    x, labels = digits.digits()

    def joined(numbers: list[torch.Tensor]) -> torch.Tensor:
        return digits.losses(digits.network(), x, labels, numbers)

    share, _, _ = digits.compare(joined, x, labels, 3, 32, 2, 2)
    assert share > 10
