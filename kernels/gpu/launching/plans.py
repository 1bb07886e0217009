"""What a call of the general form launches and allocates, but for its tensors: a pure function of how they lie.

The choice is kept between calls. On a CPU, the launch being stubbed, choosing anew cost 20 of the 37 microseconds that
this package adds to Triton's own (`benchmarks/compiled/host_time.py`).
"""

import dataclasses
import functools
from typing import Any

import torch

from ...contract import Options
from ..backward import backward_kernel
from ..forward import folded_kernel, forward_kernel
from . import config as configs
from .config import ROWS, LaunchConfig
from .geometry import (
    Allocation,
    backward_map,
    backward_march_tile,
    compared_size,
    contiguous,
    geometry_of,
    is_channels_last,
    map_dtype,
    march_tile,
    meta,
    num_sms,
    run_cycle,
    runs,
    sweep_tile,
    whole_map,
    with_runs,
)
from .launch import Launch, compiler_options

KEPT = 1024  # plans of each kind; a network has one for every size of its maps


@dataclasses.dataclass(frozen=True)
class ForwardPlan:
    """Of `forward_kernel`, or of `folded_kernel`."""

    launches: tuple[Launch, ...]  # none where x is empty
    z: Allocation  # [N, g, H, W]
    lse: Allocation  # [N, g]
    stats: Allocation | None  # [N, g, strips, 2], where one launch leaves something to the next
    folded: Allocation  # [3, C], of `folded_kernel`: what its first launch leaves to its second
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
    g = options.num_splits
    x = meta(shape, stride, dtype)
    y = torch.empty_like(x, dtype=options.out_dtype)
    if config is None:
        config = configs.forward_config((n, c, h, w), g, dtype.itemsize, is_channels_last(x), num_sms(device))
    geometry = geometry_of(g, config, x, y)
    access = geometry.access(x, y)
    constants: dict[str, Any] = {
        **march_tile(geometry),
        **runs(x, config),
        **sweep_tile(config),
        **run_cycle(geometry.group, x, y, config),
        **compiler_options(config),
        "ROWS": ROWS,
        "RELU_U": options.relu_u,
        "RELU_Z": options.relu_z,
        "CHANNELS_LAST": geometry.channels_last,
        "FLAT": access.flat,
        "VEC": access.vec,
        "WIDE": geometry.wide,
        **whole_map(config, g, x, y),
    }
    kernel = forward_kernel
    if folded:
        kernel = folded_kernel
        block_m, _ = configs.combine_blocks(geometry.group, config.num_warps)
        constants |= {"EPS1": options.eps1, "EPS2": options.eps2, "BLOCK_M": block_m}
    slabs, strips = geometry.slabs, geometry.strips
    phases = [((slabs, 1), True, True)]
    if config.split:
        phases = [((slabs, strips), True, False), ((slabs, geometry.chunks), False, True)]
    numbers = (h, w, geometry.group, g, strips, geometry.strip_rows, geometry.chunk, *stride, *y.stride())
    return ForwardPlan(
        launches=tuple(
            Launch(kernel, grid, numbers, {**constants, "LOGITS": logits, "APPLY": apply})
            for grid, logits, apply in phases
            if n > 0
        ),
        z=contiguous(n, g, h, w),
        lse=contiguous(n, g),
        stats=contiguous(n, g, strips, 2) if config.split else None,
        folded=contiguous(3, c),
        map_dtype=map_dtype(dtype),
    )


@dataclasses.dataclass(frozen=True)
class BackwardPlan:
    """Of `backward_kernel`."""

    launches: tuple[Launch, ...]
    partials: Allocation  # [N, strips, width]
    da: Allocation | None  # [N, g, H, W]; None, and scratch too, where tiles are whole maps
    scratch: Allocation | None  # [N, g, strips, 2, strip_rows + 4, pitch]
    totals: Allocation | None  # [N, g, chunks], where one launch leaves something to the next
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
    g = options.num_splits
    x, dy = meta(shape, stride, dtype), meta(shape, dy_stride, dy_dtype)
    dx = torch.empty_like(x)
    if config is None:
        config = configs.backward_config(
            (n, c, h, w), g, dtype.itemsize, is_channels_last(x), num_sms(device), compared_size(dtype)
        )
    config = with_runs(config, x, dy, dx)
    geometry = geometry_of(g, config, x, dy, dx)
    access, access_dy = geometry.access(x), geometry.access(dy)
    tile = backward_map(config, g, x, dy, dx)
    whole = tile["MAP_H"] > 0 and not tile["LANE"]
    constants = {
        **backward_march_tile(geometry),
        **sweep_tile(config),
        **compiler_options(config),
        "RELU_U": options.relu_u,
        "RELU_Z": options.relu_z,
        "CHANNELS_LAST": geometry.channels_last,
        "FLAT": access.flat,
        "FLAT_DY": access_dy.flat,
        "VEC": access.vec,
        "VEC_DY": access_dy.vec,
        "SAME": x.stride() == dy.stride() == dx.stride(),
        "WIDE": geometry.wide,
        **tile,
    }
    slabs, strips, strip_rows, chunks = geometry.slabs, geometry.strips, geometry.strip_rows, geometry.chunks
    sizes = [c] * (3 if has_shift else 2) + [g] * options.relu_z
    numbers = (
        h, w, c, geometry.group, g, strips, strip_rows, chunks, geometry.chunk, sum(sizes), geometry.pitch,
        *dy_stride, *stride, *dx.stride(),
    )  # fmt: skip
    phases = [((slabs, 1), True, True)]
    if config.split:
        phases = [((slabs, chunks), True, False), ((slabs, strips), False, True)]
    return BackwardPlan(
        launches=tuple(
            Launch(backward_kernel, grid, numbers, {**constants, "REDUCE": reduce, "MARCH": march})
            for grid, reduce, march in phases
        ),
        partials=contiguous(n, strips, sum(sizes)),
        da=None if whole else contiguous(n, g, h, w),
        scratch=None if whole else contiguous(n, g, strips, 2, strip_rows + 4, geometry.pitch),
        totals=contiguous(n, g, chunks) if config.split else None,
        sizes=sizes,
    )
