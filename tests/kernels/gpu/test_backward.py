"""The backward kernels against autograd through the float64 reference; z and lse are a perfect forward's."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig

from tests.helpers.golden import GRADIENTS, Case, Results, check, make_case, run_backward, run_reference, saved
from tests.helpers.launches import slab, split
from tests.helpers.layouts import (
    STRIDED,
    channels_last,
    cropped,
    every_other_channel,
    first_channels_last,
    one_number,
    same_image,
    transposed,
    unaligned,
)

launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")

FORMATS = pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])


def backward(case: Case, config: LaunchConfig | None) -> Results:
    __tracebackhide__ = True
    results = run_backward(launcher, case, *saved(case), config=config)
    check(case, results)
    return results


# --- sizes: one below, at and above every block -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "config"),
    [
        (1, slab()),
        (2, slab()),
        (3, slab()),
        (7, slab()),
        (1, split(1)),
        (3, split(1)),
        (4, split(2)),
        (5, split(2)),
        (4, split(3)),
        (5, split(4)),
        (6, split(7)),
        (7, split(7)),
        (8, split(7)),
        (15, split(7)),
        (15, split(14)),
    ],
    ids=lambda p: str(p.strip_rows) if isinstance(p, LaunchConfig) else None,
)
def test_heights_around_a_strip(h: int, config: LaunchConfig, device: str) -> None:
    relu = h % 2 == 1
    backward(make_case((1, 2, h, 3), 1, device=device, channels_last=h % 2 == 0, relu_u=relu, relu_z=relu), config)


@FORMATS
@pytest.mark.parametrize("w", [1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 17])
def test_widths_around_a_block(w: int, nhwc: bool, device: str) -> None:
    """Tiles of 8 columns; in NCHW, where a row is longer, they overlap by two on either side."""
    backward(make_case((1, 2, 3, w), 1, device=device, channels_last=nhwc, relu_u=w % 2 == 0), slab(block_w=8))


@pytest.mark.parametrize("strips", [1, 4])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 7])
def test_strips_of_columns(columns: int, strips: int, device: str) -> None:
    """Widths one below, at and above a tile of so many strips, and one of two tiles."""
    width, tile = columns * strips, {"block_w": strips, "strip_columns": columns}
    for w, config in (
        (width - 1, slab(block_c=2, **tile)),
        (width, split(2, **tile)),
        (width + 1, slab(block_c=2, **tile)),
        (2 * width, split(2, **tile)),
    ):
        if w > 0:
            backward(make_case((1, 3, 3, w), 1, device=device, channels_last=True, relu_z=True), config)
    if width > 1:
        case = make_case((2, 4, 3, 2 * width), 2, device=device, channels_last=True, relu_u=True)
        backward(case, split(2, block_c=2, **tile))  # whole tiles of dense tensors


@pytest.mark.parametrize("w", [63, 64, 65])
def test_widths_around_the_widest_block(w: int, device: str) -> None:
    backward(make_case((1, 1, 2, w), 1, device=device), slab(block_w=64, block_c=1, block_k=1))


@FORMATS
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5])
def test_channels_around_the_blocks(group: int, nhwc: bool, device: str) -> None:
    """The march takes 4 channels at a time and the flat sweep 2, then the other way round."""
    blocks = {"block_c": 2, "block_k": 4} if nhwc else {"block_c": 4, "block_k": 2}
    backward(make_case((1, 2 * group, 2, 3), 2, device=device, channels_last=nhwc), slab(**blocks))


@FORMATS
@pytest.mark.parametrize(("h", "w"), [(3, 5), (4, 4), (1, 17)])
def test_pixels_around_a_block(h: int, w: int, nhwc: bool, device: str) -> None:
    config = slab(block_p=16, block_w=32)
    backward(make_case((1, 2, h, w), 1, device=device, channels_last=nhwc, relu_z=True), config)


@FORMATS
@pytest.mark.parametrize("block_p", [2, 8, 32])
def test_chunks_that_do_not_end_with_strips(block_p: int, nhwc: bool, device: str) -> None:
    """7 x 5 pixels in strips of 3 rows, and chunks of 16, 16 and 32 pixels."""
    config = split(3, block_p=block_p)
    backward(make_case((1, 2, 7, 5), 1, device=device, channels_last=nhwc, relu_u=True, relu_z=True), config)


def test_several_images_and_subspaces_and_strips(device: str) -> None:
    backward(make_case((2, 6, 3, 9), 2, device=device, relu_z=True), split(2, block_c=2))


@pytest.mark.parametrize("batch", [1, 3])
def test_chosen_configuration(batch: int, device: str) -> None:
    """One image splits and three do not, where there is one multiprocessor, as in the interpreter."""
    backward(make_case((batch, 3, 8, 3), 1, torch.float32, device), None)


# --- types --------------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype, nhwc: bool, device: str) -> None:
    case = make_case((1, 6, 4, 5), 2, dtype, device, channels_last=nhwc, relu_u=nhwc, relu_z=nhwc)
    backward(case, split(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_and_gradient_beside_16_bits(dtype: torch.dtype, device: str) -> None:
    """As under autocast, with out_dtype=torch.float32."""
    case = make_case((1, 4, 3, 4), 1, dtype, device, parameters=torch.float32, relu_u=True, relu_z=True)
    case.dy = torch.randn_like(case.dy, dtype=torch.float32)
    backward(case, slab())


# --- values -------------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("config", [slab(), split(2)], ids=["slab", "split"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_ties(dtype: torch.dtype, config: LaunchConfig, nhwc: bool, device: str) -> None:
    """Integers 0, 1, 2, also across the borders of tiles and strips: the first maximum in row-major order wins."""
    case = make_case((1, 3, 5, 9), 1, dtype, device, channels_last=nhwc)
    case.x = torch.randint_like(case.x, 3)
    case.scale = case.scale.abs() * torch.tensor([1, -1, 1], dtype=dtype, device=device)
    backward(case, config)


@pytest.mark.parametrize(
    "config",
    [
        slab(block_w=1, strip_columns=9),
        slab(block_w=2, strip_columns=5),
        split(2, block_w=2, strip_columns=2),
        slab(block_w=1, strip_columns=9, block_c=1),
        split(2, block_w=1, strip_columns=3, block_c=1),
    ],
    ids=["row", "strips", "tiles", "whole row", "whole tiles"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ties_across_columns(dtype: torch.dtype, config: LaunchConfig, device: str) -> None:
    """Likewise, where a lane holds several columns: within a strip, and across its borders."""
    case = make_case((1, 3, 5, 9), 1, dtype, device, channels_last=True)
    case.x = torch.randint_like(case.x, 3)
    case.scale = case.scale.abs() * torch.tensor([1, -1, 0], dtype=dtype, device=device)
    backward(case, config)


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("w", [4, 12, 16, 20, 24, 28])
def test_ties_across_runs(w: int, columns: int, device: str) -> None:
    """Likewise, where a lane holds a run of columns of NCHW: within a run, and across the borders of runs and tiles."""
    case = make_case((1, 3, 5, w), 1, device=device)
    case.x = torch.randint_like(case.x, 3)
    case.scale = case.scale.abs() * torch.tensor([1, -1, 0], dtype=case.scale.dtype, device=device)
    backward(case, split(2, block_w=16, columns=columns) if w % 8 else slab(block_w=16, columns=columns))


@pytest.mark.parametrize("config", [slab(), split(2)], ids=["slab", "split"])
def test_constant_x(config: LaunchConfig, device: str) -> None:
    """Every window ties; at the borders it is the window's first valid pixel that wins."""
    case = make_case((1, 2, 3, 9), 1, device=device)
    case.x = torch.full_like(case.x, -0.7)
    backward(case, config)


@pytest.mark.parametrize("config", [slab(), split(3)], ids=["slab", "split"])
def test_peaked_maps(config: LaunchConfig, device: str) -> None:
    case = make_case((1, 6, 8, 5), 1, torch.float32, device, gain=60)
    assert run_reference(case, torch.float64).A.amax() > 0.9
    backward(case, config)


# --- what arrives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [slab(), split(2)], ids=["slab", "split"])
@pytest.mark.parametrize("arriving", ["dy", "d_attention"])
def test_one_gradient_alone(arriving: str, config: LaunchConfig, device: str) -> None:
    case = make_case((1, 4, 3, 5), 2, device=device, relu_u=True)
    absent = {"dy": "d_attention", "d_attention": "dy"}[arriving]
    backward(dataclasses.replace(case, **{absent: None}), config)


@pytest.mark.parametrize(
    ("layout_x", "layout_dy"),
    [
        (None, one_number),
        (channels_last, one_number),
        (None, channels_last),
        (channels_last, None),
        (None, same_image),
        (None, every_other_channel),
        (channels_last, cropped),
        (transposed, None),
        (channels_last, first_channels_last),
        (None, unaligned),
    ],
    ids=lambda f: f.__name__ if f else "contiguous",
)
def test_strides_of_dy(
    layout_x: Callable[[Tensor], Tensor] | None, layout_dy: Callable[[Tensor], Tensor] | None, device: str
) -> None:
    case = make_case((2, 4, 2, 4), 1, torch.float32, device)
    case.x = layout_x(case.x) if layout_x else case.x
    case.dy = layout_dy(case.dy) if layout_dy else case.dy
    backward(case, slab())


def test_strides_of_the_attention_gradient(device: str) -> None:
    case = make_case((2, 2, 2, 3), 2, device=device)
    case.d_attention = case.d_attention[:1, :, :, :1].expand(case.d_attention.shape)
    backward(case, slab())


@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
def test_strided_x(layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = make_case((2, 3, 2, 5), 1, device=device)
    case.x = layout(case.x)
    backward(case, slab())


@pytest.mark.parametrize("config", [None, slab(), split()], ids=["chosen", "slab", "split"])
def test_no_images(config: LaunchConfig | None, device: str) -> None:
    case = make_case((0, 4, 3, 5), 2, device=device)
    results = run_backward(launcher, case, *saved(case), config=config)
    assert all(getattr(results, name).count_nonzero() == 0 for name in GRADIENTS)


@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (2, 2, 4, 4)])
def test_nan_is_not_lost(shape: tuple[int, int, int, int], relu: bool, device: str) -> None:
    """NaN in one image: NaN wherever autograd has it, though not only there, and nothing in the other image."""
    case = make_case(shape, 1, device=device, relu_u=relu, relu_z=relu)
    case.shift = case.shift.abs() + 9  # no ReLU stops a gradient
    case.x[0, 0, 0, 0] = torch.nan
    for arriving in (case, dataclasses.replace(case, dy=None)):
        results = run_backward(launcher, arriving, *saved(arriving), config=slab())
        golden = run_reference(arriving, torch.float64)
        for name in ("dx", "dscale", "dshift", "dv"):
            assert getattr(results, name)[getattr(golden, name).isnan()].isnan().all(), name
        torch.testing.assert_close(results.dx[1], golden.dx[1])
