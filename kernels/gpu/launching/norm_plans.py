"""What a call with BatchNorm launches and allocates, but for its tensors; kept between calls, as in plans.py."""

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
    Allocation,
    backward_map,
    backward_march_tile,
    compared_size,
    contiguous,
    geometry_of,
    is_channels_last,
    is_flat,
    is_wide,
    map_dtype,
    march_tile,
    meta,
    num_sms,
    run_cycle,
    runs,
    sweep_tile,
    vector_width,
    with_runs,
)
from .launch import Launch, compiler_options
from .plans import KEPT


@dataclasses.dataclass(frozen=True)
class MomentsPlan:
    """Of `moments_kernel`."""

    launch: Launch
    parts: Allocation  # [P, 3, C]
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
        **compiler_options(config),
        "BLOCK_C": config.block_c,
        "BLOCK_P": config.block_p,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        "VEC": vector_width(channels_last, c, x) if flat else 1,
        "WIDE": is_wide(x) or n * h * w >= 2**30,
    }
    numbers = (n, c, h, w, config.part_pixels, *stride)
    return MomentsPlan(
        launch=Launch(moments_kernel, (cdiv(c, config.block_c), config.parts), numbers, constants),
        parts=contiguous(config.parts, 3, c),
        map_dtype=map_dtype(dtype),
    )


@dataclasses.dataclass(frozen=True)
class NormForwardPlan:
    """Of `norm_logits_kernel` and `norm_apply_kernel`."""

    logits: Launch
    apply: Launch
    z: Allocation  # [N, g, H, W]
    lse: Allocation  # [N, g]
    first: Allocation  # [5, C]
    second: Allocation  # [6, g]
    shift: Allocation  # [C]
    z_moments: Allocation  # [N * strips, 3, g]
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
    x = meta(shape, stride, dtype)
    y = torch.empty_like(x, dtype=options.out_dtype)
    if config is None:
        config = configs.norm_forward_config((n, c, h, w), g, dtype.itemsize, is_channels_last(x), num_sms(device))
    # a slab is one chunk, in whole tiles: of H*W alone the compiler would not know the alignment
    geometry = geometry_of(
        g, config, x, y, chunk=None if config.split else cdiv(h * w, config.block_p) * config.block_p
    )
    group, slabs, strips = geometry.group, geometry.slabs, geometry.strips
    access = geometry.access(x, y)
    block_m, block_parts = configs.combine_blocks(group, config.num_warps)
    shared: dict[str, Any] = {
        **compiler_options(config),
        "BLOCK_Z": 128 * config.num_warps,
        "CHANNELS_LAST": geometry.channels_last,
        "VEC": access.vec,
        "WIDE": geometry.wide,
    }
    logits: dict[str, Any] = {
        **shared,
        **march_tile(geometry),
        **runs(x, config),
        "EPS": options.eps1,
        "ROWS": ROWS,
        "BLOCK_M": block_m,
        "BLOCK_PARTS": block_parts,
        "RELU_U": options.relu_u,
    }
    apply: dict[str, Any] = {
        **shared,
        **sweep_tile(config),
        **run_cycle(group, x, y, config),
        "EPS": options.eps2,
        "RELU_Z": options.relu_z,
        "FLAT": access.flat,
    }
    logits_numbers = (x_parts, h, w, group, g, strips, geometry.strip_rows, *stride)
    apply_numbers = (n * strips if z_parts is None else z_parts, h, w, group, g, geometry.chunk, *stride, *y.stride())
    return NormForwardPlan(
        logits=Launch(norm_logits_kernel, (slabs, strips), logits_numbers, logits),
        apply=Launch(norm_apply_kernel, (slabs, geometry.chunks), apply_numbers, apply),
        z=contiguous(n, g, h, w),
        lse=contiguous(n, g),
        first=contiguous(5, c),
        second=contiguous(6, g),
        shift=contiguous(c),
        z_moments=contiguous(n * strips, 3, g),
        map_dtype=map_dtype(dtype),
    )


@dataclasses.dataclass(frozen=True)
class NormBackwardPlan:
    """Of the three kernels of the backward."""

    reduce: Launch
    march: Launch
    complete: Launch | None  # where the depthwise norm takes its statistics from this batch
    sums: Allocation  # [g, 5, N, chunks]
    partials: Allocation  # [N, strips, width]
    scratch: Allocation | None  # [N, g, strips, 2, strip_rows + 4, pitch]; None where tiles are whole maps
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
    g, sms = options.num_splits, num_sms(device)
    x, dy = meta(shape, stride, dtype), meta(shape, dy_stride, dy_dtype)
    dx = torch.empty_like(x)
    if config is None:
        config = configs.backward_config(
            (n, c, h, w), g, dtype.itemsize, is_channels_last(x), sms, compared_size(dtype)
        )
    config = with_runs(config, x, dy, dx)
    geometry = geometry_of(g, config, x, dy, dx, chunk=configs.pass_pixels(h, w, n * g, config, sms))
    access, access_dx, access_dy = geometry.access(x), geometry.access(x, dx), geometry.access(dy)
    block_i = min(next_power_of_2(geometry.chunks), 32)
    tile = backward_map(config, g, x, dy, dx)
    whole = tile["MAP_H"] > 0 and not tile["LANE"]
    shared: dict[str, Any] = {
        **compiler_options(config),
        "RELU_Z": options.relu_z,
        "CHANNELS_LAST": geometry.channels_last,
        "VEC_DY": access_dy.vec,
        "SAME": x.stride() == dy.stride() == dx.stride(),
        "WIDE": geometry.wide,
    }
    reduce = {**shared, **sweep_tile(config), "FLAT": access.flat, "FLAT_DY": access_dy.flat, "VEC": access.vec}
    march = {
        **shared,
        **backward_march_tile(geometry),
        "BLOCK_P": config.block_p,
        "BLOCK_N": 32 * config.num_warps // block_i,
        "BLOCK_I": block_i,
        "RELU_U": options.relu_u,
        "BATCH_Z": batch2,
        "SUM_IMAGES": batch2 or has_beta2,
        "VEC": access_dx.vec,
        **tile,
    }
    complete = {
        **shared,
        **_complete_tile(config, geometry.channels_last, h * w, min(access_dx.vec, access_dy.vec)),
        "EPS_1": options.eps1,
        "FLAT": access_dx.flat,
        "FLAT_DY": access_dy.flat,
        "VEC": access_dx.vec,
    }
    slabs, group, strips, strip_rows = geometry.slabs, geometry.group, geometry.strips, geometry.strip_rows
    chunk, chunks, pitch = geometry.chunk, geometry.chunks, geometry.pitch
    width = (3 if batch1 or has_beta1 else 2) * c
    strides = (*dy_stride, *stride, *dx.stride())
    reduce_numbers = (h, w, group, g, n, chunks, chunk, *dy_stride, *stride)
    march_numbers = (h, w, c, group, g, n, strips, strip_rows, chunks, width, pitch, *strides)
    complete_numbers = (h, w, c, group, g, chunk, *strides)
    return NormBackwardPlan(
        reduce=Launch(norm_reduce_kernel, (slabs, chunks), reduce_numbers, reduce),
        march=Launch(norm_march_kernel, (slabs, strips), march_numbers, march),
        complete=Launch(norm_complete_kernel, (slabs, chunks), complete_numbers, complete) if batch1 else None,
        sums=contiguous(g, 5, n, chunks),
        partials=contiguous(n, strips, width),
        scratch=None if whole else contiguous(n, g, strips, 2, strip_rows + 4, pitch),
        width=width,
    )


def _complete_tile(config: LaunchConfig, channels_last: bool, pixels: int, vec: int) -> dict[str, int]:
    """The tile of a sweep over three tensors: half in channels_last, and where a whole one of short accesses spills."""
    block_p, block_k = config.block_p, config.block_k
    if channels_last:
        return {"BLOCK_P": max(block_p // 2, 1), "BLOCK_K": block_k}
    half = block_p // 2
    if (
        8 * cdiv(pixels, half) * half <= 7 * cdiv(pixels, block_p) * block_p
    ):  # else an eighth of the lanes would be idle
        block_p, block_k = half, 2 * block_k
    return {"BLOCK_P": block_p, "BLOCK_K": block_k if vec >= 4 else max(block_k // 2, 1)}
