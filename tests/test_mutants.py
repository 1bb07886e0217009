"""Wrong operators, which the comparison that all tests use must reject: a test that cannot fail proves nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.golden import Case, Results, check, differentiate, errors, logits, make_case, run_reference, saved
from ulsam_fused import reference

TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])


def results_of(function: Callable[..., tuple[Tensor, Tensor]], case: Case) -> Results:
    """What this operator gives, computed as accurately as the real ones and stored in their types."""
    results = differentiate(function, case, torch.float64)
    for name in ("y", "A"):
        setattr(results, name, getattr(results, name).to(case.compute_dtype))
    for name, like in zip(("dx", "dscale", "dshift", "dv", "db"), case.tensors(), strict=True):
        setattr(results, name, None if like is None else getattr(results, name).to(like.dtype))
    return results


def case_of(dtype: torch.dtype, *, relu: bool = False) -> Case:
    """Two images and subspaces; with ReLU the logits of each subspace have both signs, so that db is not a sum of 0."""
    case = make_case((2, 4, 14, 9), 2, dtype, relu_u=relu, relu_z=relu)
    if relu:
        case.b = case.b - saved(case)[0].transpose(0, 1).flatten(1).median(1).values.to(dtype)
    return case


def failing(case: Case, results: Results) -> set[str]:
    with pytest.raises(AssertionError, match="FAIL"):
        check(case, results)
    return {name for name, (error, budget) in errors(case, results).items() if not error <= budget}


ALL = {"y - x", "A", "dx", "dscale", "dshift", "dv", "db"}


@TYPES
@pytest.mark.parametrize("relu", [False, True])
def test_the_operator_itself_passes(dtype: torch.dtype, relu: bool) -> None:
    case = case_of(dtype, relu=relu)

    def right(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return reference.general_form(*tensors, 2, relu_u=relu, relu_z=relu)

    check(case, results_of(right, case))


@TYPES
def test_identity(dtype: torch.dtype) -> None:
    """y = x, A uniform, dx = dy and zeros: fails everywhere, not in some quantity only."""
    case = case_of(dtype, relu=True)

    def identity(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        n, _, h, w = x.shape
        return x * 1, x.new_full((n, 2, h, w), 1 / (h * w)).detach()

    assert failing(case, results_of(identity, case)) == ALL


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_identity_in_y_of_16_bits(dtype: torch.dtype) -> None:
    """y alone, in x's own type, where A is 1 / 126 on average: still not x."""
    case = case_of(dtype)
    assert failing(case, Results(y=case.x)) == {"y"}


@TYPES
def test_maps_of_the_wrong_subspace(dtype: torch.dtype) -> None:
    case = case_of(dtype)

    def swapped(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, A = reference.general_form(*tensors, 2)
        return y, A.flip(1)

    assert "A" in failing(case, results_of(swapped, case))
    assert "y - x" not in failing(case, results_of(swapped, case))


@TYPES
def test_last_maximum_of_a_tie(dtype: torch.dtype) -> None:
    """Only the gradients differ, and only those that tell pixels of the same x apart."""
    case = case_of(dtype)
    case.x = torch.randint_like(case.x, 3)

    def last(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, A = reference.general_form(x.flip(2, 3), *parameters, 2)
        return y.flip(2, 3), A.flip(2, 3)

    assert failing(case, results_of(last, case)) == {"dx"}


@TYPES
@pytest.mark.parametrize("missing", ["above", "below"])
def test_dropped_halo_row(missing: str, dtype: torch.dtype) -> None:
    """Strips of 7 rows, the second (or first) of which does not see the row beyond its border."""
    case = case_of(dtype)

    def cut(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        x, *parameters = tensors
        whole = logits(case, x, *parameters)
        if missing == "above":
            z = torch.cat([whole[:, :, :7], logits(case, x[:, :, 7:], *parameters)], 2)
        else:
            z = torch.cat([logits(case, x[:, :, :7], *parameters), whole[:, :, 7:]], 2)
        A = z.flatten(2).softmax(-1).view_as(z)
        return (1 + A.repeat_interleave(2, 1)) * x, A

    required = {"y - x", "A", "dscale", "dv"}
    if dtype != torch.bfloat16:  # whose dx is dy but for three digits, which hide what two rows add
        required.add("dx")
    assert failing(case, results_of(cut, case)) >= required


@TYPES
def test_sign_of_scale_forgotten(dtype: torch.dtype) -> None:
    case = case_of(dtype)

    def unsigned(x: Tensor, scale: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return reference.general_form(x, scale.abs(), *parameters, 2)

    assert failing(case, results_of(unsigned, case)) >= {"y - x", "A", "dx", "dscale", "dv"}


@TYPES
@pytest.mark.parametrize("forgotten", ["relu_u", "relu_z"])
def test_activation_forgotten(forgotten: str, dtype: torch.dtype) -> None:
    case = case_of(dtype, relu=True)
    flags = {"relu_u": True, "relu_z": True, forgotten: False}

    def plain(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return reference.general_form(*tensors, 2, **flags)

    assert failing(case, results_of(plain, case)) >= {"y - x", "A", "dx", "dscale", "dv", "db"}


@TYPES
def test_gradient_of_the_map_forgotten(dtype: torch.dtype) -> None:
    """A treated as a constant where y is made: the forward is right and dx is dy (1 + A) and what arrives at A."""
    case = case_of(dtype)

    def constant(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        _, A = reference.general_form(x, *parameters, 2)
        return (1 + A.detach().repeat_interleave(2, 1)) * x, A

    assert failing(case, results_of(constant, case)) == {"dx", "dscale", "dv"}


@TYPES
def test_gradient_that_arrives_at_the_map_forgotten(dtype: torch.dtype) -> None:
    case = case_of(dtype, relu=True)

    def deaf(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, A = reference.general_form(*tensors, 2, relu_u=True, relu_z=True)
        return y, A.detach()

    assert failing(case, results_of(deaf, case)) == {"dx", "dscale", "dshift", "dv", "db"}


def test_nan_passes_nowhere() -> None:
    case = case_of(torch.float64)
    results = run_reference(case, torch.float64)
    for name in ("y", "A", "dx", "dscale", "dshift", "dv", "db"):
        t = getattr(results, name).clone()
        t.view(-1)[0] = torch.nan
        assert failing(case, Results(**{name: t})) == {"y - x" if name == "y" else name}


def test_nothing_to_compare_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="nothing"):
        check(case_of(torch.float64), Results())
