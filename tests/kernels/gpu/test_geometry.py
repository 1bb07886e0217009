"""What kernels are told of memory: strides of a kind that no layout of the other tests has alone."""

import dataclasses

import pytest
import torch
from torch import Tensor

geometry = pytest.importorskip("ulsam_fused.kernels.gpu.launching.geometry")
from ulsam_fused.kernels.gpu.launching.config import forward_config  # noqa: E402


def strided(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("stride", "channels_last", "width"),
    [
        ((64, 16, 4, 1), False, 4),
        ((65, 16, 4, 1), False, 1),  # images an odd number apart, and all else even
        ((66, 16, 4, 1), False, 2),
        ((68, 17, 4, 1), False, 1),
        ((64, 1, 16, 4), True, 4),
        ((65, 1, 16, 4), True, 1),
        ((96, 1, 24, 6), True, 2),
    ],
)
def test_vector_width(stride: tuple[int, ...], channels_last: bool, width: int) -> None:
    assert geometry.vector_width(channels_last, 4, strided((2, 4, 4, 4), stride)) == width


def test_wide_is_the_sum_of_all_axes() -> None:
    assert not geometry.is_wide(strided((1, 3, 3, 4), (0, 2**29, 2**28, 1)))
    assert geometry.is_wide(strided((1, 3, 3, 4), (0, 2**29, 2**29, 1)))  # no axis alone reaches 2^31
    assert geometry.is_wide(strided((1, 3, 2, 1), (0, 2**30, 1, 1)))
    assert not geometry.is_wide(strided((3, 3, 2, 2), (2**31, 4, 2, 1)))  # images are reached by int64 anyway


def test_flat_is_one_stride_for_all_pixels() -> None:
    assert geometry.is_flat(strided((2, 4, 4, 4), (64, 16, 4, 1)))
    assert geometry.is_flat(strided((2, 4, 4, 4), (128, 1, 16, 4)))
    assert geometry.is_flat(strided((2, 4, 1, 4), (64, 16, 99, 1)))
    assert not geometry.is_flat(strided((2, 4, 4, 4), (96, 24, 6, 1)))
    assert not geometry.is_flat(strided((2, 4, 4, 4), (64, 16, 1, 4)))


@pytest.mark.parametrize(("apart_x", "apart_y", "run"), [(0, 0, 4), (4, 0, 4), (1, 0, 1), (0, 1, 1), (2, 0, 2)])
def test_runs_begin_where_images_do(apart_x: int, apart_y: int, run: int) -> None:
    """7 x 7 pixels: after 4 channels runs of 4 begin at the same pixels, if images begin at multiples of 4."""
    shape, config = (2, 8, 7, 7), dataclasses.replace(forward_config((2, 8, 7, 7), 1, 4, False, 132), split=False)
    x, y = (strided(shape, (8 * 49 + apart, 49, 7, 1)) for apart in (apart_x, apart_y))
    assert geometry.run_cycle(8, x, y, config) == {"CYCLE": run, "RUN": run}
