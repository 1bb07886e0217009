"""What the Triton and the C++ kernels are both asked: every form of the operator, signs and kinks, what is infinite."""

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from ulsam_fused.kernels.cpu import backend as cpp
from ulsam_fused.kernels.cpu import build

from tests.helpers.golden import (
    Case,
    Results,
    attention_of,
    check,
    make_case,
    run_backward,
    run_forward,
    run_reference,
    saved,
)
from tests.helpers.launches import slab


class Kernels(NamedTuple):
    """A backend in one memory format, and sizes of which no block or vector divides all."""

    backend: ModuleType
    device: str
    channels_last: bool
    channels: int
    widths: tuple[int, ...]
    launch: dict[str, Any]

    def cases(self, height: int, **options: Any) -> Iterator[Case]:
        for width in self.widths:
            shape = (1, self.channels, height, width)
            yield make_case(shape, 1, device=self.device, channels_last=self.channels_last, **options)

    def backward(self, case: Case) -> Results:
        return run_backward(self.backend, case, *saved(case), **self.launch)

    def check(self, case: Case) -> Results:
        """Forward, what it saves, and backward are within their budgets; returns the gradients."""
        __tracebackhide__ = True
        results, z, lse = run_forward(self.backend, case, **self.launch)
        check(case, results)
        check(case, Results(A=attention_of(case, z, lse)))
        gradients = self.backward(case)
        check(case, gradients)
        return gradients


@pytest.fixture(params=["triton", "cpp-nchw", "cpp-channels_last"])
def kernels(request: pytest.FixtureRequest, device: str) -> Kernels:
    if request.param == "triton":
        triton = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")
        return Kernels(triton, device, False, 3, (5,), {"config": slab()})
    if build.problem() is not None:
        pytest.skip(str(build.problem()))
    return Kernels(cpp, "cpu", request.param == "cpp-channels_last", 10, (5, 10), {})


@pytest.mark.parametrize("biases", ["none", "shift", "b", "both"])
@pytest.mark.parametrize(("relu_u", "relu_z"), [(False, False), (True, False), (False, True), (True, True)])
def test_activations_and_biases(relu_u: bool, relu_z: bool, biases: str, kernels: Kernels) -> None:
    shift, b = biases in ("shift", "both"), biases in ("b", "both")
    for case in kernels.cases(3, shift=shift, b=b, relu_u=relu_u, relu_z=relu_z):
        gradients = kernels.check(case)
        if b and not relu_z:
            assert gradients.db.item() == 0, "without act_z the softmax does not see b"


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("signs", [(0.0,), (1.0, -1.0, 0.0)], ids=["zero", "mixed"])
def test_signs_of_scale(signs: tuple[float, ...], relu: bool, kernels: Kernels) -> None:
    """With a scale of 0 all u of a channel tie: the first valid pixel of each window wins."""
    for case in kernels.cases(3, relu_u=relu, relu_z=relu):
        factors = torch.tensor(signs, device=kernels.device).repeat(kernels.channels)[: kernels.channels]
        case.scale = case.scale.abs() * factors
        kernels.check(case)


@pytest.mark.parametrize(("relu_u", "relu_z"), [(True, False), (False, True), (True, True)])
def test_zeros_where_relu_has_its_kink(relu_u: bool, relu_z: bool, kernels: Kernels) -> None:
    """u and z that are exactly 0 pass no gradient, though their windows have attention."""
    for case in kernels.cases(5, relu_u=relu_u, relu_z=relu_z):
        case.x = torch.randint_like(case.x, -2, 1)
        case.x[:, :, 0, 0] = 1
        case.shift, case.b = torch.zeros_like(case.shift), torch.zeros_like(case.b)
        case.scale, case.v = case.scale.abs(), case.v.abs()
        assert (case.scale.view(-1, 1, 1) * case.x == 0).any()
        assert (saved(case)[0] == 0).any()
        check(case, kernels.backward(case))


def test_strided_parameters(kernels: Kernels) -> None:
    case = make_case((1, 6, 2, 3), 2, device=kernels.device, channels_last=kernels.channels_last)
    twice = {name: getattr(case, name).repeat_interleave(2)[::2] for name in ("scale", "shift", "v", "b")}
    kernels.check(dataclasses.replace(case, **twice))


@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")
def test_window_without_finite_numbers(kernels: Kernels) -> None:
    """A corner of -inf: the first valid pixel of a window of -inf wins, never the padding."""
    for case in kernels.cases(5, shift=False):
        case.x[:, :, :3, :3] = -torch.inf
        case.scale, case.v = case.scale.abs(), case.v.abs()
        case.dy = None
        dx = kernels.backward(case).dx
        torch.testing.assert_close(dx, run_reference(case, torch.float64).dx, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")
def test_underflowed_attention_keeps_infinity(kernels: Kernels) -> None:
    """A is exactly 0 at a pixel of -inf whose window holds finite numbers."""
    case = make_case((1, 1, 3, 5), 1, torch.float32, kernels.device, shift=False, b=False)
    row = torch.tensor([-torch.inf, -300.0, -300.0, 0.0, 1.0], device=kernels.device)
    case.x = row.expand(1, 1, 3, 5).contiguous()
    case.scale, case.v = torch.ones_like(case.scale), torch.ones_like(case.v)
    results, _, _ = run_forward(kernels.backend, case, **kernels.launch)
    assert results.A[0, 0, 0, 0] == 0
    torch.testing.assert_close(results.y, run_reference(case, torch.float32).y)
