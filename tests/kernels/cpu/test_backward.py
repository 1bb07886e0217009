"""The C++ backward against autograd through the float64 reference; z and lse are a perfect forward's."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.cpu import backend, build

from tests.helpers.golden import GRADIENTS, Case, Results, check, make_case, run_backward, run_reference, saved
from tests.helpers.layouts import (
    STRIDED,
    channels_last,
    cropped,
    every_other_channel,
    first_channels_last,
    one_number,
    unaligned,
)

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))

FORMATS = pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


def backward(case: Case) -> Results:
    __tracebackhide__ = True
    results = run_backward(backend, case, *saved(case))
    check(case, results)
    return results


# --- sizes: one below, at and above every vector and strip of rows --------------------------------------------------


@pytest.mark.slow  # 168 backwards
@FORMATS
@pytest.mark.parametrize("w", [*range(1, 20), 23, 24, 25, 31, 32, 33, 39, 40, 41])
def test_widths(w: int, nhwc: bool) -> None:
    for h, relu in ((1, False), (2, True), (5, False)):
        backward(make_case((1, 18, h, w), 2, torch.float32, channels_last=nhwc, relu_u=relu, relu_z=relu))


@FORMATS
@pytest.mark.parametrize("w", [1, 2, 3, 4, 5, 8, 9, 13, 17])
def test_widths_in_float64(w: int, nhwc: bool) -> None:
    for h in (2, 4):
        backward(make_case((1, 10, h, w), 2, channels_last=nhwc, relu_u=h == 2))


@FORMATS
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("h", "w"), [(1, 900), (4, 800), (5, 800), (9, 800), (27, 110), (28, 110), (400, 1), (150, 9)])
def test_strips_of_rows(h: int, w: int, ties: bool, nhwc: bool) -> None:
    """With halos of two rows; ties across the borders of strips, too."""
    case = make_case((1, 8, h, w), 1, torch.float32, channels_last=nhwc)
    if ties:
        case.x = torch.randint_like(case.x, 3)
    backward(case)


@pytest.mark.slow  # large maps
@FORMATS
@TYPES
def test_few_large_maps_are_shared_out(dtype: torch.dtype, nhwc: bool) -> None:
    """32768 numbers or more in each of fewer than 16 maps; blocks of channels, of which the last is no whole vector."""
    backward(make_case((2, 20, 60, 70), 1, dtype, channels_last=nhwc))


@TYPES
@pytest.mark.parametrize("group", [4, 7])
def test_maps_that_share_lines(group: int, dtype: torch.dtype) -> None:
    """Strips are done for one subspace after another; with ties across their borders."""
    case = make_case((5, 4 * group, 48, 48), 4, dtype, channels_last=True, relu_u=group == 7)
    if group == 7:
        case.x = torch.randint_like(case.x, 3)
    backward(case)


@pytest.mark.slow  # about 100 cases of two or three widths
@FORMATS
@TYPES
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
def test_channels(group: int, dtype: torch.dtype, nhwc: bool) -> None:
    for w in (3, 12):
        backward(make_case((1, 2 * group, 3, w), 2, dtype, channels_last=nhwc, relu_u=w == 12))


def test_blocks_of_images() -> None:
    """More images than go into one block: 100 of 2 subspaces in blocks of 3."""
    backward(make_case((100, 4, 2, 3), 2, torch.float32))


# --- types --------------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("arriving", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_and_parameters_of_other_types(arriving: torch.dtype, dtype: torch.dtype, nhwc: bool) -> None:
    """As under autocast, with out_dtype=torch.float32."""
    case = make_case((2, 20, 3, 9), 2, dtype, parameters=torch.float32, relu_u=True, relu_z=True, channels_last=nhwc)
    case.dy = case.dy.to(arriving)
    backward(case)


# --- values -------------------------------------------------------------------------------------------------------


@FORMATS
@TYPES
@pytest.mark.parametrize(("h", "w"), [(5, 9), (7, 7), (4, 14), (6, 3)])
def test_ties(h: int, w: int, dtype: torch.dtype, nhwc: bool) -> None:
    """Integers 0, 1, 2: the first maximum in row-major order wins."""
    case = make_case((1, 12, h, w), 1, dtype, channels_last=nhwc)
    case.x = torch.randint_like(case.x, 3)
    case.scale = case.scale.abs() * torch.tensor([1, -1, 0], dtype=dtype).repeat(4)
    backward(case)


@FORMATS
def test_ties_go_to_the_first_maximum_exactly(nhwc: bool) -> None:
    x = torch.randint(-1, 2, (1, 8, 9, 13)).float()
    x[0, 0] = x[0, 0] * 0.0  # 0 and -0 tie
    x[0, 0, ::2] *= -1
    x = channels_last(x) if nhwc else x
    case = make_case((1, 8, 9, 13), 1, torch.float32, shift=False, b=False)
    case = dataclasses.replace(case, x=x, scale=torch.ones(8), v=torch.ones(8), dy=None)
    z, lse = saved(case)
    dx = run_backward(backend, case, z, lse).dx
    A = (z.double() - z.double().flatten(1).logsumexp(1).view(-1, 1, 1, 1)).exp()
    dl = A * (case.d_attention - (A * case.d_attention).sum())
    leaf = x.double().requires_grad_()
    pooled = torch.nn.functional.max_pool2d(leaf, 3, 1, 1)
    (golden,) = torch.autograd.grad(pooled, leaf, dl.expand_as(pooled))
    torch.testing.assert_close(dx.double(), golden, rtol=1e-4, atol=1e-6)


@FORMATS
def test_constant_x(nhwc: bool) -> None:
    """Every window ties; at the borders it is the window's first valid pixel that wins."""
    case = make_case((1, 8, 3, 9), 1, channels_last=nhwc)
    case.x = torch.full_like(case.x, -0.7)
    backward(case)


@FORMATS
def test_peaked_maps(nhwc: bool) -> None:
    case = make_case((1, 16, 8, 9), 1, torch.float32, gain=60, channels_last=nhwc)
    assert run_reference(case, torch.float64).A.amax() > 0.9
    backward(case)


# --- what arrives -------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("arriving", ["dy", "d_attention"])
def test_one_gradient_alone(arriving: str, nhwc: bool) -> None:
    case = make_case((1, 20, 3, 5), 2, relu_u=True, channels_last=nhwc)
    absent = {"dy": "d_attention", "d_attention": "dy"}[arriving]
    backward(dataclasses.replace(case, **{absent: None}))


@pytest.mark.parametrize(
    ("layout_x", "layout_dy"),
    [
        (None, one_number),
        (channels_last, one_number),
        (None, channels_last),
        (channels_last, None),
        (None, every_other_channel),
        (None, cropped),
        (channels_last, cropped),
        (cropped, None),
        (channels_last, first_channels_last),
        (None, unaligned),
    ],
    ids=lambda f: f.__name__ if f else "contiguous",
)
def test_strides_of_dy(
    layout_x: Callable[[Tensor], Tensor] | None, layout_dy: Callable[[Tensor], Tensor] | None
) -> None:
    for w in (4, 11):
        case = make_case((2, 16, 3, w), 1, torch.float32)
        case.x = layout_x(case.x) if layout_x else case.x
        case.dy = layout_dy(case.dy) if layout_dy else case.dy
        backward(case)


def test_strides_of_the_attention_gradient() -> None:
    case = make_case((2, 2, 2, 3), 2)
    case.d_attention = case.d_attention[:1, :, :, :1].expand(case.d_attention.shape)
    backward(case)


@TYPES
@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
def test_strided_x(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for w in (5, 11):
        case = make_case((2, 18, 4, w), 2, dtype)
        case.x = layout(case.x)
        backward(case)


@TYPES
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last], ids=["nchw", "channels_last"])
def test_views_at_the_end_of_their_buffers(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Infinity before and behind x and dy changes nothing."""

    def inside(t: Tensor) -> Tensor:
        buffer = torch.full((t.numel() + 32,), torch.inf, dtype=dtype)
        return buffer[16:-16].as_strided(t.shape, t.stride(), 16).copy_(t)

    for w in (1, 3, 7, 8, 9, 14):
        case = make_case((2, 20, 3, w), 2, dtype)
        case = dataclasses.replace(case, x=layout(case.x), dy=layout(case.dy))
        alone = run_backward(backend, case, *saved(case))
        moved = dataclasses.replace(case, x=inside(case.x), dy=inside(case.dy))
        among = run_backward(backend, moved, *saved(case))
        assert all(torch.equal(getattr(alone, name), getattr(among, name)) for name in GRADIENTS)


def test_no_images() -> None:
    case = make_case((0, 4, 3, 5), 2)
    results = run_backward(backend, case, *saved(case))
    assert all(getattr(results, name).count_nonzero() == 0 for name in GRADIENTS)


# --- what is not a number -----------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dy", [False, True])
def test_nan_and_infinity_reach_what_they_reach_in_the_reference(
    value: float, relu: bool, dy: bool, dtype: torch.dtype, nhwc: bool
) -> None:
    # the last vector of 19 takes channel 15 once more; in channels_last maps of 8 channels share lines
    for channels, other, num_splits, size in (
        (2, 1, 1, (5, 9)),
        (16, 1, 1, (5, 9)),
        (19, 15, 1, (5, 9)),
        (16, 1, 2, (46, 46)),
    ):
        case = make_case((2, channels, *size), num_splits, dtype, relu_u=relu, relu_z=relu, channels_last=nhwc)
        case.scale[0] = 1.5
        case.scale[other] = -1.5
        for place in [(0, 0, 2, 2), (0, 0, 2, 3), (0, 0, 3, 1), (1, other, 0, 0)]:
            case.x[place] = value
        case.x[1, 0, :3, :3] = value  # a whole window
        if not dy:
            case.dy = None
        results, golden = run_backward(backend, case, *saved(case)), run_reference(case, torch.float64)
        for name in GRADIENTS:
            ours, theirs = getattr(results, name).double(), getattr(golden, name)
            # (1 + A) x and x + A x differ where A is 0 and x infinite: infinity and NaN, which count as one here
            ours, theirs = (t.masked_fill(~t.isfinite(), torch.nan) for t in (ours, theirs))
            tolerance = 1e-11 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
