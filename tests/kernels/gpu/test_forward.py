"""The forward kernels against the float64 reference: y, A, and the z and lse that backward rebuilds A from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig

from tests.helpers.golden import Case, Results, attention_of, check, make_case, not_numbers, run_forward, run_reference
from tests.helpers.launches import slab, split
from tests.helpers.layouts import STRIDED, first_channels_last, unaligned

launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")

FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])


def forward(case: Case, config: LaunchConfig | None, **options: Any) -> Results:
    __tracebackhide__ = True
    results, z, lse = run_forward(launcher, case, config=config, **options)
    check(case, results)
    check(case, Results(A=attention_of(case, z, lse)))
    return results


# --- sizes: one below, at and above every block -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "config"),
    [
        (1, slab()),
        (6, slab()),
        (7, slab()),
        (8, slab()),
        (14, slab()),
        (15, slab()),
        (1, split()),
        (7, split()),
        (8, split()),
        (13, split()),
        (14, split()),
        (15, split()),
        (13, split(14)),
        (15, split(14)),
        (15, split(21)),
    ],
    ids=lambda p: str(p.strip_rows) if isinstance(p, LaunchConfig) else None,
)
def test_heights_around_a_strip(h: int, config: LaunchConfig, device: str) -> None:
    forward(make_case((1, 2, h, 3), 1, device=device, channels_last=h % 2 == 0), config)


@pytest.mark.parametrize("w", [1, 2, 7, 8, 9, 15, 16, 17])
def test_widths_around_a_block(w: int, device: str) -> None:
    forward(make_case((1, 2, 2, w), 1, device=device, channels_last=w % 2 == 0), slab(block_w=8))


@pytest.mark.parametrize(
    ("w", "columns"), [(1, 1), (7, 1), (16, 1), (2, 2), (10, 2), (14, 2), (16, 2), (4, 4), (12, 4), (16, 4)]
)
def test_runs_of_columns(w: int, columns: int, device: str) -> None:
    """Rows of one run, of as many as the tile has, and fewer: beyond the last run lanes hold copies of it."""
    forward(make_case((1, 3, 3, w), 1, device=device), slab(block_w=16, block_c=2, columns=columns))


@pytest.mark.parametrize("w", [63, 64, 65])
def test_widths_around_the_widest_block(w: int, device: str) -> None:
    forward(make_case((1, 1, 2, w), 1, device=device), slab(block_w=64, block_c=1, block_k=1))


@FORMATS
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 9])
def test_channels_around_the_blocks(group: int, channels_last: bool, device: str) -> None:
    """The march takes 4 channels at a time and the flat sweep 2, then the other way round."""
    blocks = {"block_c": 2, "block_k": 4} if channels_last else {"block_c": 4, "block_k": 2}
    forward(make_case((1, 2 * group, 2, 3), 2, device=device, channels_last=channels_last), slab(**blocks))


@FORMATS
@pytest.mark.parametrize(("h", "w"), [(3, 5), (4, 4), (1, 17), (3, 11)])
def test_pixels_around_a_block(h: int, w: int, channels_last: bool, device: str) -> None:
    config = slab(block_p=16, block_w=16)
    forward(make_case((1, 2, h, w), 1, device=device, channels_last=channels_last), config)


@FORMATS
@pytest.mark.parametrize("block_p", [4, 16, 64])
def test_chunks_that_do_not_end_with_strips(block_p: int, channels_last: bool, device: str) -> None:
    """15 x 5 pixels in chunks of 36, 48 and 64; (max, sum) of three strips, one of a single row."""
    config = split(block_p=block_p, block_c=2, block_k=2)
    forward(make_case((1, 2, 15, 5), 1, device=device, channels_last=channels_last), config)


@pytest.mark.parametrize("out_dtype", [None, torch.float16, torch.float64])
@pytest.mark.parametrize(("group", "h", "w"), [(4, 3, 5), (8, 1, 1), (12, 7, 7), (2, 2, 3), (6, 5, 2), (6, 3, 3)])
def test_runs_of_16_bytes(group: int, h: int, w: int, out_dtype: torch.dtype | None, device: str) -> None:
    """Runs begin at other pixels in every channel: one tile of runs and several, and groups that the cycle divides."""
    case = make_case((2, 2 * group, h, w), 2, torch.float32, device)
    forward(case, slab(), out_dtype=out_dtype)


@pytest.mark.parametrize("config", [slab(), slab(block_p=64, block_k=32)], ids=["small", "large"])
def test_runs_of_8_halves(config: LaunchConfig, device: str) -> None:
    forward(make_case((2, 48, 3, 5), 2, torch.float16, device), config, out_dtype=torch.float32)


def test_several_images_and_subspaces_and_strips(device: str) -> None:
    forward(make_case((2, 6, 8, 9), 2, device=device), split(block_c=2))


@pytest.mark.parametrize("batch", [1, 3])
def test_chosen_configuration(batch: int, device: str) -> None:
    """One image splits and three do not, where there is one multiprocessor, as in the interpreter."""
    forward(make_case((batch, 3, 8, 9), 1, torch.float32, device), None)


# --- types --------------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype, out_dtype: torch.dtype | None, channels_last: bool, device: str) -> None:
    relu = channels_last
    case = make_case((1, 6, 8, 5), 2, dtype, device, channels_last=channels_last, relu_u=relu, relu_z=relu)
    forward(case, slab(), out_dtype=out_dtype)


@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_out_dtype_other_than_x(out_dtype: torch.dtype, device: str) -> None:
    forward(make_case((1, 2, 3, 4), 1, torch.float32, device), slab(), out_dtype=out_dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_beside_16_bits(dtype: torch.dtype, device: str) -> None:
    case = make_case((1, 4, 3, 4), 1, dtype, device, parameters=torch.float32, relu_u=True, relu_z=True)
    forward(case, slab(), out_dtype=torch.float32)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [slab(), split()], ids=["slab", "split"])
def test_peaked_maps(config: LaunchConfig, device: str) -> None:
    """Large weights: one pixel has nearly all attention, y is far from x, and exp of a logit overflows."""
    case = make_case((1, 6, 8, 5), 1, torch.float32, device, gain=60)
    results = forward(case, config)
    assert results.A.amax() > 0.9


def test_logits_too_large_for_exp(device: str) -> None:
    """act_z is the identity and every logit about -1e4, of which exp is 0."""
    case = make_case((1, 2, 8, 3), 1, device=device)
    case.b = torch.full_like(case.b, -1e4)
    forward(case, split())


def test_constant_x(device: str) -> None:
    case = make_case((1, 3, 8, 9), 1, device=device)
    case.x = torch.full_like(case.x, 0.7)
    results = forward(case, split())
    torch.testing.assert_close(results.A, torch.full_like(results.A, 1 / 72))


def test_attention_not_asked_for(device: str) -> None:
    case = make_case((1, 2, 3, 4), 1, device=device)
    with_it, without = (run_forward(launcher, case, config=slab(), need_attention=need)[0] for need in (True, False))
    assert torch.equal(with_it.y, without.y)


def test_no_images(device: str) -> None:
    case = make_case((0, 4, 3, 5), 2, device=device)
    for config in (None, slab(), split()):
        assert run_forward(launcher, case, config=config)[0].y.shape == (0, 4, 3, 5)


# --- strides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
def test_strided_x(layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = make_case((2, 3, 2, 5), 1, device=device)
    case.x = layout(case.x)
    forward(case, slab())


@pytest.mark.parametrize("layout", [unaligned, first_channels_last], ids=lambda f: f.__name__)
def test_strided_x_of_16_bits_split(layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = make_case((1, 8, 8, 8), 1, torch.float16, device)
    case.x = layout(case.x)
    forward(case, split(block_c=8, block_k=8))


# --- what is not a number -----------------------------------------------------------------------------------------

NUMPY_WARNS = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")


@NUMPY_WARNS
@pytest.mark.parametrize(
    ("scale", "relu", "config"),
    [
        ([0.5, 2.0], False, slab()),
        ([0.5, 2.0], True, slab()),
        ([0.5, 2.0], True, split()),
        ([-0.5, 2.0], False, split()),
        ([-0.5, 2.0], True, slab()),
        ([0.0, 1.0], False, slab()),
        ([torch.nan, 1.0], True, slab()),
    ],
    ids=lambda p: ("split" if p.split else "slab") if isinstance(p, LaunchConfig) else str(p),
)
def test_nan_and_infinity_are_where_the_reference_has_them(
    scale: list[float], relu: bool, config: LaunchConfig, device: str
) -> None:
    """Exactly there: attention of 0 keeps an infinite x infinite, and one image's NaN stays in that image."""
    case = make_case((8, 2, 8, 5), 1, device=device, relu_u=relu, relu_z=relu)
    case.x = not_numbers(tuple(case.x.shape), device)
    case.scale = torch.tensor(scale, dtype=torch.float64, device=device)
    case.v = case.v.abs() + 0.1
    results, _, _ = run_forward(launcher, case, config=config)
    golden = run_reference(case, torch.float64)
    torch.testing.assert_close(results.A, golden.A, equal_nan=True)
    torch.testing.assert_close(results.y, golden.y, equal_nan=True)


@NUMPY_WARNS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nan_and_infinity_in_16_bits(dtype: torch.dtype, device: str) -> None:
    case = make_case((8, 2, 4, 5), 1, dtype, device)
    case.x = not_numbers(tuple(case.x.shape), device).to(dtype)
    case.v = case.v.abs() + 0.1
    results, _, _ = run_forward(launcher, case, config=slab())
    golden = run_reference(case, torch.float64)
    torch.testing.assert_close(results.A, golden.A.float(), equal_nan=True)
    torch.testing.assert_close(results.y, golden.y.to(dtype), equal_nan=True)


@NUMPY_WARNS
@pytest.mark.parametrize("config", [slab(), split()], ids=["slab", "split"])
@pytest.mark.parametrize("shape", [(1, 1, 9, 3), (1, 1, 2, 11)], ids=["strip", "tile"])
def test_strip_or_tile_of_minus_infinity(shape: tuple[int, int, int, int], config: LaunchConfig, device: str) -> None:
    """The maximum of the first strip of rows, or tile of columns, is -inf, and that of the next is finite."""
    case = make_case(shape, 1, device=device)
    case.x[:, :, :8, :9] = -torch.inf  # the windows around the last of these rows or columns hold finite numbers
    case.scale, case.v = case.scale.abs(), case.v.abs()
    results, _, _ = run_forward(launcher, case, config=config)
    golden = run_reference(case, torch.float64)
    assert golden.A.sum().item() == pytest.approx(1)
    torch.testing.assert_close(results.A, golden.A)
    torch.testing.assert_close(results.y, golden.y)
