"""The one judge of correctness, and its use for the modules of `bench`: what is wrong is seen."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.helpers import mutants
from ulsam_fused.bench import accuracy, providers
from ulsam_fused.bench.accuracy import Measure
from ulsam_fused.bench.module_accuracy import Expected
from ulsam_fused.bench.workload import Workload

CPU = torch.device("cpu")


def test_a_tolerance_is_twice_the_loss_of_eager_and_a_rounding() -> None:
    golden = {"q": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    ours, eager = ({"q": golden["q"] + off} for off in (torch.tensor([0.3, 0.4]), torch.tensor([0.0, 0.1])))
    (found,) = accuracy.measure(ours, eager, golden, {"q": 0.01})
    assert (found.error, found.tolerance) == pytest.approx((0.1, 0.05))
    assert not found.passed
    assert found.share == pytest.approx(2)
    (found,) = accuracy.measure(ours, eager, golden, {"q": 0.01}, norms={"q": 50.0})
    assert (found.error, found.tolerance) == pytest.approx((0.01, 0.014))
    assert found.passed


def test_what_is_missing_misshapen_or_not_finite_fails() -> None:
    golden = {"q": torch.ones(2, dtype=torch.float64)}
    wrong = [{}, {"q": torch.ones(1)}, {"q": torch.tensor([1.0, math.nan])}, {"q": torch.tensor([1.0, math.inf])}]
    for ours in wrong:
        (found,) = accuracy.measure(ours, golden, golden, {"q": 0.5})
        assert not found.passed
        assert found.share == math.inf
        assert accuracy.complaint([found]) == f"wrong: q is off by {found.error:.1e}, allowed 5.0e-01"
    assert accuracy.largest_error(None, golden["q"]) == accuracy.largest_error(torch.ones(1), golden["q"]) == math.inf
    assert not Measure("q", accuracy.largest_error(wrong[2]["q"], golden["q"]), 0.5).passed
    (blind,) = accuracy.measure(golden, wrong[3], golden, {"q": 0.5})
    assert not blind.passed


def test_zeros_are_met_exactly() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    assert accuracy.relative_error(zeros, zeros, 0.0) == accuracy.largest_error(zeros, zeros) == 0
    assert (
        accuracy.relative_error(zeros + 1e-30, zeros, 0.0) == accuracy.largest_error(zeros + 1e-30, zeros) == math.inf
    )


def test_one_wrong_element_of_many_is_seen() -> None:
    golden = torch.ones(10**6)
    ours = golden.clone()
    ours[7] += 0.01
    assert accuracy.relative_error(ours, golden.double(), 1000.0) < 1.1e-5
    assert accuracy.largest_error(ours, golden) == pytest.approx(0.005, rel=1e-3)


def wrong_paper(change: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[providers.Sources], nn.Module]:
    class Wrong(providers.Paper):
        def forward(self, x: Tensor) -> Tensor:
            return change(self, x)

    def build(sources: providers.Sources) -> nn.Module:
        module = Wrong(sources.paper.dw_weight.shape[0], sources.paper.num_splits)
        module.to(sources.paper.dw_weight.dtype).load_state_dict(sources.paper.state_dict())
        return module

    return build


WRONG = {
    "identity": lambda m, x: x + 0 * (m.dw_weight.sum() + m.pw_weight.sum()),
    "swapped": lambda m, x: mutants.swapped_subspaces(x, m.dw_weight, m.pw_weight, m.num_splits),
    "no du": lambda m, x: mutants.without_gradient_through_the_maximum(x, m.dw_weight, m.pw_weight, m.num_splits),
    "half dv": lambda m, x: uf.reference.subspace_attention(
        x, m.dw_weight, (m.pw_weight + m.pw_weight.detach()) / 2, m.num_splits
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_modules_are_seen_in_every_type(name: str, dtype: str) -> None:
    workload = Workload("2x64x28x28/g4", "forward+backward", dtype, "nchw", CPU)
    torch.manual_seed(1)
    x, dy = workload.tensor(), workload.tensor()
    sources = providers.Sources.make(x, 4, training=True)
    expected = Expected.of(sources.paper, x, dy)
    assert expected.problem_with(sources.paper) is None
    for compiled in (False, True):
        problem = expected.problem_with(wrong_paper(WRONG[name])(sources), compiled)
        assert problem is not None
        assert problem.startswith("wrong: ")


def test_what_cannot_be_seen_cannot_be_judged() -> None:
    x = torch.randn(1, 4, 40, 40).bfloat16()
    sources = providers.Sources.make(x, 1, training=False)
    with torch.no_grad():
        sources.paper.pw_weight.zero_()  # A is 1 / 1600 everywhere
    problem = Expected.of(sources.paper, x, None).problem_with(nn.Identity())
    assert problem == "cannot be judged: y-x is invisible in torch.bfloat16 at this size"
