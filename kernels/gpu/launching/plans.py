"""What a call launches and allocates, but for its tensors: a pure function of x's geometry, kept between calls.

On a CPU, the launch being stubbed, choosing anew cost 20 of the 37 microseconds that this package adds to Triton's own
(`benchmarks/compiled/host_time.py`).
"""

import dataclasses
import functools
from typing import Any

import torch

from ...contract import Options
from ..backward import backward_kernel
from ..forward import folded_kernel, forward_kernel
from . import config as configs
from .config import ROWS, LaunchConfig, cdiv
from .geometry import (
    compared_size,
    is_channels_last,
    is_flat,
    is_wide,
    march_tile,
    num_sms,
    run_cycle,
    runs,
    tiles,
    vector_width,
)
from .launch import Launch

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides, as `new_empty_strided` takes them: with a shape alone `new_empty` takes half as long again."""

KEPT = 1024  # plans of each kind; a network has one for every size of its maps


@dataclasses.dataclass(frozen=True)
class ForwardPlan:
    """Of `forward_kernel`, or of its form with folded norms."""

    launches: tuple[Launch, ...]  # none where x is empty
    z: Layout  # [N, g, H, W]
    lse: Layout  # [N, g]
    stats: Layout | None  # [N, g, strips, 2], where one launch leaves something to the next
    folded: Layout  # [3, C], of the form with folded norms: what its first launch leaves to its second
    map_dtype: torch.dtype


@functools.lru_cache(maxsize=KEPT)
def forward_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    options: Options,
    config: LaunchConfig | None,  # None: chosen here
    folded: bool = False,  # fixed norms are folded in the kernel
) -> ForwardPlan:
    """For x [N, C, H, W] of this shape, stride, type and device."""
    n, c, h, w = shape
    num_splits = options.num_splits
    x = meta(shape, stride, dtype)
    y = torch.empty_like(x, dtype=options.out_dtype)
    group = c // num_splits
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.forward_config((n, c, h, w), num_splits, dtype.itemsize, channels_last, num_sms(device))
    strips = cdiv(h, config.strip_rows) if config.split else 1
    chunk = configs.chunk_pixels(w, config)
    flat = is_flat(x) and is_flat(y)
    constants: dict[str, Any] = {
        **tiles(config, group),
        "ROWS": ROWS,
        **runs(x, config),
        "RELU_U": options.relu_u,
        "RELU_Z": options.relu_z,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        **run_cycle(group, x, y, config),
        "VEC": vector_width(channels_last, group, x, y) if flat else 1,
        "WIDE": is_wide(x) or is_wide(y),
    }
    kernel = forward_kernel
    if folded:
        kernel = folded_kernel
        block_m, _ = configs.combine_blocks(group, config.num_warps)
        constants |= {"EPS1": options.eps1, "EPS2": options.eps2, "BLOCK_M": block_m}
    slabs = n * num_splits
    phases = [((slabs, 1), True, True)]
    if config.split:
        phases = [((slabs, strips), True, False), ((slabs, cdiv(h * w, chunk)), False, True)]
    numbers = (h, w, group, num_splits, strips, config.strip_rows or h, chunk, *stride, *y.stride())
    return ForwardPlan(
        launches=tuple(
            Launch(kernel, grid, numbers, {**constants, "LOGITS": logits, "APPLY": apply})
            for grid, logits, apply in phases
            if n > 0
        ),
        z=layout(n, num_splits, h, w),
        lse=layout(n, num_splits),
        stats=layout(n, num_splits, strips, 2) if config.split else None,
        folded=layout(3, c),
        map_dtype=map_dtype(dtype),
    )


@dataclasses.dataclass(frozen=True)
class BackwardPlan:
    """Of `backward_kernel`."""

    launches: tuple[Launch, ...]
    partials: Layout  # [N, strips, width]
    scratch: Layout  # [N, g, strips, 2, strip_rows + 4, pitch]
    totals: Layout | None  # [N, g, chunks], where one launch leaves something to the next
    sizes: list[int]  # of dv, dscale, dshift and db in the width of the partial sums, as far as they are there


@functools.lru_cache(maxsize=KEPT)
def backward_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    dy_stride: tuple[int, ...],  # those of x where there is no dy
    dy_dtype: torch.dtype,
    options: Options,
    has_shift: bool,
    config: LaunchConfig | None,  # None: chosen here
) -> BackwardPlan:
    """For x [N, C, H, W] of this shape, stride, type and device, not empty."""
    n, c, h, w = shape
    x, dy = meta(shape, stride, dtype), meta(shape, dy_stride, dy_dtype)
    dx = torch.empty_like(x)
    channels_last = is_channels_last(x)
    num_splits = options.num_splits
    group = c // num_splits
    if config is None:
        config = configs.backward_config(
            (n, c, h, w), num_splits, dtype.itemsize, channels_last, num_sms(device), compared_size(dtype)
        )
    strip_rows = config.strip_rows or h
    strips = cdiv(h, strip_rows)
    pitch = configs.border_pitch(w, config, channels_last)
    chunk = configs.chunk_pixels(w, config)
    chunks = cdiv(h * w, chunk)
    sizes = [c] * (3 if has_shift else 2) + [num_splits] * options.relu_z
    flat, flat_dy = is_flat(x), is_flat(dy)
    constants = {
        **tiles(config, group),
        **march_tile(config, w, channels_last),
        "RELU_U": options.relu_u,
        "RELU_Z": options.relu_z,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        "FLAT_DY": flat_dy,
        "VEC": vector_width(channels_last, group, x) if flat else 1,
        "VEC_DY": vector_width(channels_last, group, dy) if flat_dy else 1,
        "WIDE": is_wide(x) or is_wide(dy) or is_wide(dx),
    }
    numbers = (
        h, w, c, group, num_splits, strips, strip_rows, chunks, chunk, sum(sizes),
        pitch, *dy_stride, *stride, *dx.stride(),
    )  # fmt: skip
    slabs = n * num_splits
    phases = [((slabs, 1), True, True)]
    if config.split:
        phases = [((slabs, chunks), True, False), ((slabs, strips), False, True)]
    return BackwardPlan(
        launches=tuple(
            Launch(backward_kernel, grid, numbers, {**constants, "REDUCE": reduce, "MARCH": march})
            for grid, reduce, march in phases
        ),
        partials=layout(n, strips, sum(sizes)),
        scratch=layout(n, num_splits, strips, 2, strip_rows + 4, pitch),
        totals=layout(n, num_splits, chunks) if config.split else None,
        sizes=sizes,
    )


def meta(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this geometry without storage."""
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def layout(*shape: int) -> Layout:
    """Of a contiguous tensor."""
    return shape, torch.empty(shape, device="meta").stride()


def map_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which kernels compute, and write logits and maps, for x of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32
