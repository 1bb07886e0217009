"""Maps that are a tile: both directions against the reference, by `golden`, and who takes this way."""

import pytest
import torch

from tests.helpers.golden import (
    Case,
    Results,
    attention_of,
    check,
    make_case,
    not_numbers,
    run_backward,
    run_forward,
    run_reference,
    saved,
)
from tests.helpers.launches import split, whole
from tests.helpers.layouts import channels_last, one_number, transposed, unaligned

launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")
geometry = pytest.importorskip("ulsam_fused.kernels.gpu.launching.geometry")


def both(case: Case, **changes: int) -> None:
    __tracebackhide__ = True
    config = whole(**changes)
    results, z, lse = run_forward(launcher, case, config=config, out_dtype=case.compute_dtype)
    check(case, results)
    check(case, Results(A=attention_of(case, z, lse)))
    check(case, run_backward(launcher, case, *saved(case), config=config))


@pytest.mark.parametrize("h", [1, 2, 3, 5])
def test_sizes(h: int, device: str) -> None:
    for w in (1, 2, 7, 8):
        both(make_case((2, 6, h, w), 2, device=device))


def test_widest_tile(device: str) -> None:
    both(make_case((1, 2, 2, 14), 1, device=device), block_w=16, block_c=2)


@pytest.mark.parametrize("group", [1, 3, 4, 5, 9])
def test_channels_around_a_tile(group: int, device: str) -> None:
    for relu in (False, True):
        both(make_case((1, 2 * group, 3, 5), 2, device=device, relu_u=relu, relu_z=not relu))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype, device: str) -> None:
    for relu in (False, True):
        both(make_case((1, 6, 4, 7), 2, dtype=dtype, device=device, relu_u=relu, relu_z=relu))


def test_ties_and_peaks(device: str) -> None:
    case = make_case((2, 4, 4, 6), 2, device=device)
    case.x = case.x.round()
    both(case)
    case.v = case.v * 50
    both(case)


@pytest.mark.parametrize("arriving", ["dy", "d_attention"])
def test_one_gradient_alone(arriving: str, device: str) -> None:
    case = make_case((2, 4, 3, 5), 2, device=device)
    setattr(case, "d_attention" if arriving == "dy" else "dy", None)
    check(case, run_backward(launcher, case, *saved(case), config=whole()))


@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
def test_nan_and_infinity_are_where_the_reference_has_them(device: str) -> None:
    shape = (8, 2, 8, 5)
    x = not_numbers(shape, device)
    for relu in (False, True):
        case = make_case(shape, 1, device=device, relu_u=relu, relu_z=relu)
        case.x, case.v = x, case.v.abs() + 0.1
        (found, _, _), expected = run_forward(launcher, case, config=whole()), run_reference(case, torch.float64)
        torch.testing.assert_close(found.y, expected.y, equal_nan=True)
        torch.testing.assert_close(found.A, expected.A, equal_nan=True)


def test_who_takes_it() -> None:
    """Tensors that are contiguous within a slab, in a launch that has the whole of it."""
    x = torch.empty(2, 4, 5, 6, device="meta")
    taken, left = {"MAP_H": 5, "MAP_W": 6}, {"MAP_H": 0, "MAP_W": 0}
    for apart in (x, x[::2], torch.empty(2, 8, 5, 6, device="meta")[:, 4:], unaligned(x)):
        assert geometry.whole_map(whole(), apart, x) == taken
    for layout in (channels_last, transposed, one_number):
        assert geometry.whole_map(whole(), x, layout(x)) == left
    assert geometry.whole_map(split(), x) == left
    assert geometry.whole_map(split(whole_map=True), x) == left
