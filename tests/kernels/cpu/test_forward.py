"""The C++ forward against the float64 reference: y, A, and the z and lse that backward rebuilds A from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Inputs, Options
from ulsam_fused.kernels.cpu import backend, build

from tests.helpers.golden import Case, Results, attention_of, check, make_case, not_numbers, run_forward, run_reference
from tests.helpers.layouts import STRIDED, channels_last

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))

FORMATS = pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


def forward(case: Case, **options: Any) -> Results:
    __tracebackhide__ = True
    results, z, lse = run_forward(backend, case, **options)
    check(case, results)
    check(case, Results(A=attention_of(case, z, lse)))
    return results


# --- sizes: one below, at and above every vector, run of vectors and strip of rows ----------------------------------


@FORMATS
@pytest.mark.parametrize("w", [*range(1, 20), 23, 24, 25, 31, 32, 33, 39, 40, 41, 47, 48, 49, 56, 64, 65])
def test_widths(w: int, nhwc: bool) -> None:
    for h, relu in ((1, False), (2, True), (5, False)):
        forward(make_case((1, 18, h, w), 2, torch.float32, channels_last=nhwc, relu_u=relu, relu_z=relu))


@FORMATS
@pytest.mark.parametrize("w", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 20])
def test_widths_in_float64(w: int, nhwc: bool) -> None:
    for h in (1, 2, 4):
        forward(make_case((1, 10, h, w), 2, channels_last=nhwc, relu_u=h == 2))


@FORMATS
@pytest.mark.parametrize(("h", "w"), [(1, 300), (2, 2100), (17, 112), (36, 56), (37, 56), (40, 60), (300, 1), (150, 9)])
def test_strips_of_rows(h: int, w: int, nhwc: bool) -> None:
    forward(make_case((1, 16, h, w), 2, torch.float32, channels_last=nhwc))


@pytest.mark.slow  # large maps
@FORMATS
@TYPES
@pytest.mark.parametrize("h", [30, 61])
def test_few_large_maps_are_shared_out(h: int, dtype: torch.dtype, nhwc: bool) -> None:
    """At least 32768 numbers in each of fewer than 16 maps."""
    wide = torch.promote_types(dtype, torch.float32)
    forward(make_case((1, 16, h, 120), 1, dtype, channels_last=nhwc), out_dtype=wide)


@TYPES
@pytest.mark.parametrize("group", [4, 7])
def test_maps_that_share_lines(group: int, dtype: torch.dtype) -> None:
    """Where a subspace's channels are less than a line of the cache, strips are done for one subspace after another."""
    wide = torch.promote_types(dtype, torch.float32)
    forward(make_case((5, 4 * group, 48, 48), 4, dtype, channels_last=True, relu_u=group == 7), out_dtype=wide)


@pytest.mark.slow  # about 100 cases of two or three widths
@FORMATS
@TYPES
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 33])
def test_channels(group: int, dtype: torch.dtype, nhwc: bool) -> None:
    """Around the channels that go at once, the lanes of a vector, and the blocks of a sum; in three widths."""
    wide = torch.promote_types(dtype, torch.float32)
    for w in (3, 12, 21):
        forward(make_case((1, 2 * group, 3, w), 2, dtype, channels_last=nhwc, relu_u=w == 12), out_dtype=wide)


# --- types --------------------------------------------------------------------------------------------------------


@FORMATS
@TYPES
@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype, out_dtype: torch.dtype | None, nhwc: bool) -> None:
    case = make_case((2, 24, 8, 9), 2, dtype, channels_last=nhwc, relu_u=nhwc, relu_z=nhwc)
    if out_dtype == torch.float32 and dtype == torch.float64:
        return  # y - x is judged by what the computation may lose
    forward(case, out_dtype=out_dtype)


@pytest.mark.parametrize("parameters", [torch.float64, torch.float32, torch.float16])
def test_parameters_of_other_types(parameters: torch.dtype) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case((1, 8, 3, 4), 1, dtype, parameters=torch.float16, relu_u=True, relu_z=True)
        names = ("scale", "shift", "v", "b")
        case = dataclasses.replace(case, **{name: getattr(case, name).to(parameters) for name in names})
        forward(case, out_dtype=torch.float32)


# --- values -------------------------------------------------------------------------------------------------------


@FORMATS
def test_peaked_maps(nhwc: bool) -> None:
    """Large weights: one pixel has nearly all attention, y is far from x, and exp of a logit overflows."""
    results = forward(make_case((1, 16, 8, 9), 1, torch.float32, gain=60, channels_last=nhwc))
    assert results.A.amax() > 0.9


def test_logits_too_large_for_exp() -> None:
    case = make_case((1, 2, 8, 3), 1, torch.float32)
    case.b = torch.full_like(case.b, -1e4)
    forward(case)


def test_vanishing_attention() -> None:
    """exp of -80 to -110: normal numbers, those too small to be, and 0."""
    case = make_case((1, 1, 40, 1), 1, torch.float32, shift=False, b=False)
    case.x = torch.cat([torch.zeros(2), torch.linspace(-80, -110, 38)]).view(1, 1, 40, 1)
    case.scale, case.v = torch.ones(1), torch.ones(1)
    A = run_forward(backend, case)[0].A.flatten().double()
    exact = case.x.double().flatten().unfold(0, 3, 1).amax(1).exp() / 3
    torch.testing.assert_close(A[1:-1], exact, rtol=2e-5, atol=2e-38)
    assert A[-1] == 0


def test_attention_not_asked_for() -> None:
    case = make_case((1, 2, 3, 4), 1)
    with_it, without = (run_forward(backend, case, need_attention=need)[0] for need in (True, False))
    assert torch.equal(with_it.y, without.y)
    options = case.options(need_attention=False)._replace(need_lse=False)
    assert backend.forward(case.tensors(), options).lse is None


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5)])
def test_nothing(shape: tuple[int, int, int, int]) -> None:
    assert run_forward(backend, make_case(shape, 2))[0].y.shape == shape


# --- strides ------------------------------------------------------------------------------------------------------


@TYPES
@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
def test_strided_x(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for w in (5, 11):
        case = make_case((2, 18, 4, w), 2, dtype)
        case.x = layout(case.x)
        forward(case, out_dtype=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize(
    "x",
    [
        channels_last(torch.ones(4, 8, 3, 5))[::2],
        channels_last(torch.ones(2, 8, 6, 5))[:, :, ::2],
        torch.ones(4, 8, 3, 5)[::2],
        torch.ones(2, 8, 5, 3).mT,
        torch.ones(3, 1, 1, 8).permute(0, 3, 1, 2),
    ],
    ids=["images_apart", "rows_apart", "planes_apart", "columns_first", "one_pixel"],
)
def test_results_lie_as_empty_like(x: Tensor) -> None:
    v = torch.ones(8)
    z, lse = torch.ones(len(x), 2, *x.shape[2:]), torch.ones(len(x), 2)
    inputs, options = Inputs(x, v, None, v, None), Options(2, relu_u=False, relu_z=False)
    expected = torch.empty_like(x).stride()
    assert backend.forward(inputs, options).y.stride() == expected
    assert backend.backward(x, None, inputs, z, lse, options).x.stride() == expected


@TYPES
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last], ids=["nchw", "channels_last"])
def test_a_view_at_the_end_of_its_buffer_and_canaries(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Infinity before and behind x changes nothing, and nothing is written outside."""
    for w in (1, 3, 7, 8, 9, 14):
        case = make_case((2, 20, 3, w), 2, dtype)
        x = layout(case.x)
        alone, z, _ = run_forward(backend, dataclasses.replace(case, x=x))
        buffer = torch.full((x.numel() + 32,), torch.inf, dtype=dtype)
        inside = buffer[16:-16].as_strided(x.shape, x.stride(), 16).copy_(x)
        among, z2, _ = run_forward(backend, dataclasses.replace(case, x=inside))
        assert torch.equal(alone.y, among.y)
        assert torch.equal(z, z2)
        assert buffer[:16].isinf().all()
        assert buffer[-16:].isinf().all()


# --- what is not a number -----------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("scale", "relu"),
    [
        ([0.5, 2.0], False),
        ([0.5, 2.0], True),
        ([-0.5, 2.0], False),
        ([-0.5, 2.0], True),
        ([0.0, 1.0], False),
        ([torch.nan, 1.0], True),
    ],
    ids=str,
)
def test_nan_and_infinity_are_where_the_reference_has_them(
    scale: list[float], relu: bool, dtype: torch.dtype, nhwc: bool
) -> None:
    """Exactly there: attention of 0 keeps an infinite x infinite, and one image's NaN stays in that image."""
    for channels, width in ((2, 5), (16, 9)):
        case = make_case((8, channels, 8, width), 1, dtype, relu_u=relu, relu_z=relu)
        case.x = not_numbers(tuple(case.x.shape)).to(dtype)
        if nhwc:
            case.x = channels_last(case.x)
        case.scale = torch.tensor(scale, dtype=dtype).repeat(channels // 2)
        case.v = (case.v.abs() + 0.1) / channels
        results, _, _ = run_forward(backend, case)
        golden = run_reference(case, torch.float64)
        torch.testing.assert_close(results.A, golden.A.to(results.A.dtype), equal_nan=True)
        torch.testing.assert_close(results.y, golden.y.to(dtype), equal_nan=True)


@pytest.mark.parametrize(("shape", "num_splits"), [((2, 4, 100, 90), 1), ((2, 16, 60, 60), 8)], ids=["few", "shared"])
@FORMATS
def test_strips_with_nan_and_infinity(shape: tuple[int, int, int, int], num_splits: int, nhwc: bool) -> None:
    case = make_case(shape, num_splits, torch.float32, channels_last=nhwc)
    case.x[0, 1, 50, 50] = torch.nan
    case.x[1, 2, 3, 4] = -torch.inf
    case.scale = case.scale.abs()
    results, _, _ = run_forward(backend, case)
    golden = run_reference(case, torch.float64)
    torch.testing.assert_close(results.y, golden.y.float(), equal_nan=True)
