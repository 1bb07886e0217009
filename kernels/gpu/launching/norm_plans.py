"""What calls with BatchNorm launch and allocate, but for their tensors; kept between calls, as in plans.py."""

import dataclasses
import functools
from typing import Any

import torch

from ...contract import Options
from ..device.moments import moments_kernel
from ..norm_backward import norm_complete_kernel, norm_march_kernel, norm_reduce_kernel
from ..norm_forward import norm_apply_kernel, norm_logits_kernel
from . import config as configs
from .config import ROWS, LaunchConfig, MomentsConfig, cdiv, next_power_of_2
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
from .plans import KEPT, Layout, layout, map_dtype, meta

_MARCH_ONLY = ("BLOCK_C", "BLOCK_W", "EVEN_C")
_FLAT_ONLY = ("BLOCK_P", "BLOCK_K")


@dataclasses.dataclass(frozen=True)
class MomentsPlan:
    """Of `moments_kernel`."""

    launch: Launch
    parts: Layout  # [P, 3, C]
    map_dtype: torch.dtype


@functools.lru_cache(maxsize=KEPT)
def moments_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    config: MomentsConfig | None,  # None: chosen here
) -> MomentsPlan:
    """For x [N, C, H, W] of this shape, stride, type and device, not empty."""
    n, c, h, w = shape
    x = meta(shape, stride, dtype)
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.moments_config((n, c, h, w), dtype.itemsize, channels_last, num_sms(device))
    flat = is_flat(x)
    constants = {
        "BLOCK_C": config.block_c,
        "BLOCK_P": config.block_p,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        "VEC": vector_width(channels_last, c, x) if flat else 1,
        "WIDE": is_wide(x) or n * h * w >= 2**30,
        "num_warps": config.num_warps,
    }
    if torch.version.hip is None:  # AMD's compiler has no limit of registers
        constants["maxnreg"] = config.max_registers
    numbers = (n, c, h, w, config.part_pixels, *stride)
    return MomentsPlan(
        launch=Launch(moments_kernel, (cdiv(c, config.block_c), config.parts), numbers, constants),
        parts=layout(config.parts, 3, c),
        map_dtype=map_dtype(dtype),
    )


@dataclasses.dataclass(frozen=True)
class NormForwardPlan:
    """Of `norm_logits_kernel` and `norm_apply_kernel`."""

    logits: Launch
    apply: Launch
    z: Layout  # [N, g, H, W]
    lse: Layout  # [N, g]
    first: Layout  # [5, C]
    second: Layout  # [6, g]
    shift: Layout  # [C]
    z_moments: Layout  # [N * strips, 3, g]
    map_dtype: torch.dtype


@functools.lru_cache(maxsize=KEPT)
def norm_forward_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    options: Options,
    x_parts: int,  # parts of the moments of x that programs combine; 0: no depthwise norm
    z_parts: int | None,  # likewise of the logits; None: those of this call
    config: LaunchConfig | None,  # None: chosen here
) -> NormForwardPlan:
    """For x [N, C, H, W] of this shape, stride, type and device, not empty."""
    n, c, h, w = shape
    g = options.num_splits
    group = c // g
    x = meta(shape, stride, dtype)
    y = torch.empty_like(x, dtype=options.out_dtype)
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.norm_forward_config((n, c, h, w), g, dtype.itemsize, channels_last, num_sms(device))
    strips, strip_rows, chunk = _cut(config, h, w)
    if z_parts is None:
        z_parts = n * strips
    flat = is_flat(x) and is_flat(y)
    block_m, block_parts = configs.combine_blocks(group, config.num_warps)
    tile = tiles(config, group)
    shared: dict[str, Any] = {
        "BLOCK_Z": 128 * config.num_warps,
        "CHANNELS_LAST": channels_last,
        "VEC": vector_width(channels_last, group, x, y) if flat else 1,
        "WIDE": is_wide(x) or is_wide(y),
    }
    logits: dict[str, Any] = {
        **{name: value for name, value in tile.items() if name not in _FLAT_ONLY},
        **runs(x, config),
        **shared,
        "EPS": options.eps1,
        "ROWS": ROWS,
        "BLOCK_M": block_m,
        "BLOCK_PARTS": block_parts,
        "RELU_U": options.relu_u,
    }
    apply: dict[str, Any] = {
        **{name: value for name, value in tile.items() if name not in _MARCH_ONLY},
        **run_cycle(group, x, y, config),
        **shared,
        "EPS": options.eps2,
        "RELU_Z": options.relu_z,
        "FLAT": flat,
    }
    logits_numbers = (x_parts, h, w, group, g, strips, strip_rows, *stride)
    apply_numbers = (z_parts, h, w, group, g, chunk, *stride, *y.stride())
    return NormForwardPlan(
        logits=Launch(norm_logits_kernel, (n * g, strips), logits_numbers, logits),
        apply=Launch(norm_apply_kernel, (n * g, cdiv(h * w, chunk)), apply_numbers, apply),
        z=layout(n, g, h, w),
        lse=layout(n, g),
        first=layout(5, c),
        second=layout(6, g),
        shift=layout(c),
        z_moments=layout(n * strips, 3, g),
        map_dtype=map_dtype(dtype),
    )


@dataclasses.dataclass(frozen=True)
class NormBackwardPlan:
    """Of the three kernels of the backward."""

    reduce: Launch
    march: Launch
    complete: Launch | None  # where the depthwise norm takes its statistics from this batch
    sums: Layout  # [g, 5, N, chunks]
    partials: Layout  # [N, strips, width]
    scratch: Layout  # [N, g, strips, 2, strip_rows + 4, pitch]
    width: int


@functools.lru_cache(maxsize=KEPT)
def norm_backward_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    dy_stride: tuple[int, ...],  # those of x where there is no dy
    dy_dtype: torch.dtype,
    options: Options,
    batch1: bool,  # the norms that take their statistics from this batch
    batch2: bool,
    has_beta1: bool,
    has_beta2: bool,
    config: LaunchConfig | None,  # None: chosen here
) -> NormBackwardPlan:
    """For x [N, C, H, W] of this shape, stride, type and device, not empty."""
    n, c, h, w = shape
    x, dy = meta(shape, stride, dtype), meta(shape, dy_stride, dy_dtype)
    dx = torch.empty_like(x)
    channels_last = is_channels_last(x)
    num_splits = options.num_splits
    size, slabs = c // num_splits, n * num_splits
    if config is None:
        config = configs.backward_config(
            (n, c, h, w), num_splits, dtype.itemsize, channels_last, num_sms(device), compared_size(dtype)
        )
    strip_rows = config.strip_rows or h
    strips = cdiv(h, strip_rows)
    pitch = configs.border_pitch(w, config, channels_last)
    chunk = chunk_pixels(config, slabs, h, w, num_sms(device))
    chunks = cdiv(h * w, chunk)
    width = (3 if batch1 or has_beta1 else 2) * c
    flat, flat_dy = is_flat(x), is_flat(dy)
    flat_dx = flat and is_flat(dx)
    vec = vector_width(channels_last, size, x) if flat else 1
    vec_dx = vector_width(channels_last, size, x, dx) if flat_dx else 1
    tile = tiles(config, size)
    block_k = tile.pop("BLOCK_K")
    common: dict[str, Any] = {
        **{name: tile.pop(name) for name in ("BLOCK_P", "num_warps", "maxnreg") if name in tile},
        "RELU_Z": options.relu_z,
        "CHANNELS_LAST": channels_last,
        "VEC_DY": vector_width(channels_last, size, dy) if flat_dy else 1,
        "WIDE": is_wide(x) or is_wide(dy) or is_wide(dx),
    }
    block_i = min(next_power_of_2(chunks), 32)
    reduce = {**common, "BLOCK_K": block_k, "FLAT": flat, "FLAT_DY": flat_dy, "VEC": vec}
    march = {
        **common,
        **tile,
        **march_tile(config, w, channels_last),
        "BLOCK_N": 32 * config.num_warps // block_i,
        "BLOCK_I": block_i,
        "RELU_U": options.relu_u,
        "BATCH_Z": batch2,
        "SUM_IMAGES": batch2 or has_beta2,
        "VEC": vec_dx,
    }
    complete = {
        **common,
        **half_tile(config, channels_last),
        "EPS_1": options.eps1,
        "FLAT": flat_dx,
        "FLAT_DY": flat_dy,
        "VEC": vec_dx,
    }
    strides = (*stride, *dx.stride())
    reduce_numbers = (h, w, size, num_splits, n, chunks, chunk, *dy_stride, *stride)
    march_numbers = (h, w, c, size, num_splits, n, strips, strip_rows, chunks, width, pitch, *dy_stride, *strides)
    complete_numbers = (h, w, c, size, num_splits, chunk, *dy_stride, *strides)
    return NormBackwardPlan(
        reduce=Launch(norm_reduce_kernel, (slabs, chunks), reduce_numbers, reduce),
        march=Launch(norm_march_kernel, (slabs, strips), march_numbers, march),
        complete=Launch(norm_complete_kernel, (slabs, chunks), complete_numbers, complete) if batch1 else None,
        sums=layout(num_splits, 5, n, chunks),
        partials=layout(n, strips, width),
        scratch=layout(n, num_splits, strips, 2, strip_rows + 4, pitch),
        width=width,
    )


def chunk_pixels(config: LaunchConfig, slabs: int, h: int, w: int, num_sms: int) -> int:
    """Pixels per program of the flat passes: as many strips as fill the GPU, in whole tiles."""
    strip_rows = config.strip_rows or ROWS
    wanted = cdiv(config.flat_programs * num_sms, slabs)  # programs per slab
    rows = max(cdiv(h, strip_rows) // wanted, 1) * strip_rows
    return cdiv(rows * w, config.block_p) * config.block_p


def half_tile(config: LaunchConfig, channels_last: bool) -> dict[str, int]:
    """Half the flat tile, in runs of the same length: whole ones of three tensors spill where strides are odd."""
    halves = (2, 1) if channels_last else (1, 2)
    return {
        name: max(size // half, 1)
        for name, size, half in zip(("BLOCK_P", "BLOCK_K"), (config.block_p, config.block_k), halves, strict=True)
    }


def _cut(config: LaunchConfig, h: int, w: int) -> tuple[int, int, int]:
    """Strips of a map, rows of a strip, and pixels of a chunk."""
    if not config.split:
        return 1, h, h * w
    return cdiv(h, config.strip_rows), config.strip_rows, configs.chunk_pixels(w, config)
