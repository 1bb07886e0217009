"""Times of the layer under pytest-benchmark, to compare one commit with another on one machine; no time fails a test.

    pytest benchmarks --benchmark-enable --benchmark-autosave
    pytest benchmarks --benchmark-enable --benchmark-compare

On a GPU these are wall-clock times of a call and its synchronisation; `ulsam-fused bench` takes device times.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import ulsam_fused as uf

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(8, 512, 14, 14), (8, 160, 7, 7), (4, 32, 112, 112)]


@pytest.fixture(params=CASES, ids=lambda shape: "x".join(map(str, shape)))
def x(request: pytest.FixtureRequest, benchmark: Any) -> Tensor:
    benchmark.extra_info |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if DEVICE == "cuda":
        benchmark.extra_info["device"] = torch.cuda.get_device_name()
    return torch.randn(request.param, device=DEVICE)


def timed(benchmark: Any, function: Any) -> Any:
    def run() -> Any:
        result = function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    run()
    return benchmark(run)


def test_forward(benchmark: Any, x: Tensor) -> None:
    layer = uf.ULSAM(x.shape[1], 4, device=DEVICE)
    with torch.no_grad():
        y = timed(benchmark, lambda: layer(x))
    assert y.shape == x.shape


def test_step(benchmark: Any, x: Tensor) -> None:
    layer = uf.ULSAM(x.shape[1], 4, device=DEVICE)
    x.requires_grad_()
    dy = torch.randn_like(x)
    gradients = timed(benchmark, lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], dy))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
