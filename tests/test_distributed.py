"""Two gloo processes without a GPU: synchronised statistics, DistributedDataParallel, FSDP2."""

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.processes import ROOT, run_python
from tests.kernels.norms import Twins
from ulsam_fused import distributed

PROOFS = [
    "synchronised",
    "separate",
    "empty_batch",
    "one_value_per_process",
    "converted",
    "compiled",
    "shared_weights",
    "fully_sharded",
]


@pytest.mark.slow  # two processes import torch and its compiler
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes(tmp_path: pathlib.Path) -> None:
    """Each proof is a function of `two_processes.py`. One start serves all, since starts are the cost."""
    script = ROOT / "tests" / "helpers" / "two_processes.py"
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = run_python([str(script), str(tmp_path / "meeting")], cwd=tmp_path, env=environment)
    assert [line.removeprefix("proven: ") for line in output.splitlines() if "proven" in line] == PROOFS


def test_one_process_needs_no_group() -> None:
    model = uf.sync_batchnorm(nn.Sequential(uf.upstream.ULSAM(4, num_splits=2), uf.ULSAM(4, 2)))
    assert model[0].synchronised
    assert torch.isfinite(model(torch.randn(2, 4, 3, 3))).all()


class NoGradient(torch.autograd.Function):
    """A loss that a process leaves out: no gradient arrives, not even one of zeros."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


@pytest.mark.parametrize("backend", [serving.CPP, "torch"])
def test_a_process_without_gradients_takes_part_in_the_exchange(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others would wait for it for ever."""
    group = Twins()
    monkeypatch.setattr("ulsam_fused.upstream.group_of", lambda *arguments: group)
    layer, x = uf.upstream.ULSAM(4, num_splits=2, backend=backend), torch.randn(2, 4, 3, 3, requires_grad=True)
    y = layer(x)
    assert group.calls == 2
    NoGradient.apply(y).sum().backward()
    assert group.calls == 4
    assert not x.grad.any()
    assert not any(parameter.grad.any() for parameter in layer.parameters())


def test_norms_of_one_layer_are_synchronised_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    layer = uf.upstream.ULSAM(4, num_splits=2)
    for subspace in layer.subspaces:
        subspace.bn_dws = nn.SyncBatchNorm.convert_sync_batchnorm(subspace.bn_dws)
    with pytest.raises(ValueError, match="both norms"):
        layer(torch.randn(2, 4, 3, 3))
