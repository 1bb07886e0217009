"""The forward with both norms fixed and folded, by the Triton and by the C++ kernels, against the float64 reference."""

import dataclasses
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.cpu import build
from ulsam_fused.kernels.cpu import norm_backend as cpp

from tests.helpers.launches import slab, split
from tests.helpers.norm_forward_golden import Buffers, check_norm_forward, make_buffers
from tests.helpers.norm_golden import NormCase, make_norm_case
from tests.kernels.norms import run_folded

NOTHING = 1e-30  # an eps that vanishes beside a variance of 1: PyTorch 2.10 takes none of 0


class Kernels(NamedTuple):
    backend: ModuleType
    device: str
    shape: tuple[int, int, int, int]
    launches: tuple[dict[str, Any], dict[str, Any]]
    interpreted: bool

    def check(self, case: NormCase, buffers: Buffers, results: dict[str, Tensor | None]) -> None:
        __tracebackhide__ = True
        check_norm_forward(case, results, interpreted=self.interpreted, buffers=buffers, batch=False)


@pytest.fixture(params=["triton", "cpp"])
def kernels(request: pytest.FixtureRequest, device: str) -> Kernels:
    if request.param == "triton":
        triton = pytest.importorskip("ulsam_fused.kernels.gpu.norm_backend", reason="needs Triton")
        launches = ({"config": slab()}, {"config": split()})
        return Kernels(triton, device, (2, 6, 8, 5), launches, device == "cpu")
    if build.problem() is not None:
        pytest.skip(str(build.problem()))
    return Kernels(cpp, "cpu", (2, 18, 8, 9), ({}, {}), False)


@pytest.mark.slow  # the interpreter runs 16 cases
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types_and_formats(dtype: torch.dtype, biases: bool, channels_last: bool, kernels: Kernels) -> None:
    case = make_norm_case(
        kernels.shape, 2, dtype, kernels.device, channels_last=channels_last, relu_u=biases, relu_z=biases, peak=3.0
    )
    buffers = make_buffers(case, biases=biases)
    launch = kernels.launches[channels_last == biases]
    out_dtype = None if channels_last else case.compute_dtype
    results = run_folded(kernels.backend, case, buffers, out_dtype=out_dtype, **launch)
    promised = torch.empty_like(case.x, dtype=results["y"].dtype)
    assert results["y"].stride() == promised.stride()
    kernels.check(case, buffers, results)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1, 5), (1, 150, 2, 2)], ids=str)
def test_shapes(shape: tuple[int, int, int, int], kernels: Kernels) -> None:
    case = make_norm_case(shape, 3, torch.float32, kernels.device)
    buffers = make_buffers(case, torch.float16)
    kernels.check(case, buffers, run_folded(kernels.backend, case, buffers))


def test_pooling_x_itself(kernels: Kernels) -> None:
    case = make_norm_case(kernels.shape, 2, device=kernels.device)
    buffers = make_buffers(case)
    plain = dataclasses.replace(  # the same, said with an affine map that changes nothing
        case, dw=torch.ones_like(case.dw), gamma1=torch.ones_like(case.gamma1), beta1=torch.zeros_like(case.beta1),
        relu_u=False, eps1=NOTHING,
    )  # fmt: skip
    at_rest = dataclasses.replace(
        buffers, mean1=torch.zeros_like(case.dw), var1=torch.ones_like(case.dw), bias1=torch.zeros_like(case.dw)
    )
    for launch in kernels.launches:
        kernels.check(plain, at_rest, run_folded(kernels.backend, case, buffers, dw=False, **launch))


def test_without_a_first_norm_and_without_attention(kernels: Kernels) -> None:
    case = make_norm_case((2, 6, 3, 5), 2, device=kernels.device)
    buffers = make_buffers(case)
    results, without = (
        run_folded(kernels.backend, case, buffers, norm1=False, need_attention=need, **kernels.launches[0])
        for need in (True, False)
    )
    alike = dataclasses.replace(case, gamma1=torch.ones_like(case.dw), eps1=NOTHING)
    at_rest = dataclasses.replace(buffers, mean1=torch.zeros_like(case.dw), var1=torch.ones_like(case.dw), bias1=None)
    kernels.check(alike, at_rest, results)
    assert without["A"] is None
    assert torch.equal(without["y"], results["y"])


def test_no_images(kernels: Kernels) -> None:
    case = make_norm_case((0, 4, 3, 5), 2, device=kernels.device)
    assert run_folded(kernels.backend, case, make_buffers(case))["y"].shape == (0, 4, 3, 5)
