"""Real data that is small: the example with scikit-learn's digits, shortened, alone and by two processes."""

import importlib.util
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.helpers.processes import ROOT

pytest.importorskip("sklearn")
EXAMPLE = ROOT / "examples" / "digits.py"


def _run(*launcher: str) -> str:
    command = [sys.executable, *launcher, str(EXAMPLE), "--epochs", "6", "--orders", "3"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_fused_layers_train_as_the_reference_does() -> None:
    printed = _run()
    assert "fused against reference, 20 steps" in printed
    assert "\nproven: 9" in printed


def test_two_processes_train_as_one_does() -> None:
    printed = _run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert "2 processes against one, 20 steps" in printed
    assert "\nproven: 9" in printed


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layers_that_hand_x_on_are_noticed(digits: ModuleType) -> None:
    x, labels = digits.digits()

    def identity(numbers: list[torch.Tensor]) -> torch.Tensor:
        model = digits.network()
        for number in digits.INSERT:
            model.features[number - 1].ulsam = nn.Identity()
        return digits.losses(model, x, labels, numbers)

    share, _, _ = digits.compare(identity, x, labels, 5, 64, 2, 1)
    assert share > 10


def test_parts_are_what_several_processes_do_and_not_the_joined_batch(digits: ModuleType) -> None:
    """Else the comparison of two processes with one would prove nothing."""
    x, labels = digits.digits()

    def joined(numbers: list[torch.Tensor]) -> torch.Tensor:
        return digits.losses(digits.network(), x, labels, numbers)

    share, _, _ = digits.compare(joined, x, labels, 5, 64, 2, 2)
    assert share > 10
