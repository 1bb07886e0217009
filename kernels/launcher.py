"""Host side of the kernels: allocate, choose the launch configuration, launch under the tensor's own device."""

from typing import Any, Protocol

import torch
import triton
from torch import Tensor

from . import config as configs
from .backward import backward_kernel
from .config import LaunchConfig, cdiv
from .forward import forward_kernel
from .geometry import device_of, is_channels_last, is_flat, compared_size, is_wide, march_tile, num_sms, tiles, vector_width
from .plans import forward_plan

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when they were imported)."""


class Group(Protocol):
    """Several processes with a part of the batch each, for the form with BatchNorm."""

    def gather(self, moments: Tensor) -> Tensor:
        """Of [P, 3, K], rows count, mean and M2: those of all processes, [P', 3, K] in the same order everywhere."""

    def sum(self, t: Tensor) -> Tensor:
        """A new tensor, the sum over all processes."""


def forward(
    x: Tensor,  # [N, C, H, W]
    scale: Tensor,  # [C]
    shift: Tensor | None,  # [C]
    v: Tensor,  # [C]
    b: Tensor | None,  # [g]
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    need_lse: bool = True,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, A, z before act_z, and lse, A and lse empty unless needed; one launch, or two when split."""
    plan = forward_plan(x.shape, x.stride(), x.dtype, x.device, num_splits, relu_u, relu_z, out_dtype, config)
    y = torch.empty_like(x, dtype=out_dtype)
    z = torch.empty(plan.z_shape, dtype=plan.map_dtype, device=x.device)
    lse = z.new_empty(plan.z_shape[:2] if need_lse else 0)
    attention = torch.empty_like(z) if need_attention else z.new_empty(0)
    if x.numel() == 0:
        return y, attention, z, lse
    arguments: tuple[Any, ...] = (
        x, scale.contiguous(), None if shift is None else shift.contiguous(), v.contiguous(),
        None if b is None else b.contiguous(), y, attention if need_attention else None, z,
        lse if need_lse else None, None if plan.stats_shape is None else z.new_empty(plan.stats_shape), *plan.numbers,
    )  # fmt: skip
    with device_of(x):
        for grid, constants in plan.launches:
            forward_kernel[grid](*arguments, **constants)
    return y, attention, z, lse


def backward(
    dy: Tensor | None,  # [N, C, H, W], any strides
    d_attention: Tensor | None,  # [N, g, H, W]
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,  # [N, g, H, W]
    lse: Tensor,  # [N, g]
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """dx, dscale, dshift, dv, db; one launch, or two when split, and a sum over programs in a fixed order."""
    n, c, h, w = x.shape
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return (
            dx, torch.zeros_like(scale), None if shift is None else torch.zeros_like(shift), torch.zeros_like(v),
            None if b is None else torch.zeros_like(b),
        )  # fmt: skip
    channels_last = is_channels_last(x)
    group = c // num_splits
    if config is None:
        config = configs.backward_config((n, c, h, w), num_splits, x.element_size(), channels_last, num_sms(x.device), compared_size(x.dtype))
    strip_rows = config.strip_rows or h
    strips = cdiv(h, strip_rows)
    chunk = configs.chunk_pixels(w, config)
    chunks = cdiv(h * w, chunk)
    width = (2 if shift is None else 3) * c + (num_splits if relu_z else 0)
    partials = z.new_empty((n, strips, width))
    da = torch.empty_like(z)
    pitch = configs.border_pitch(w, config, channels_last)
    scratch = z.new_empty((n, num_splits, strips, 2, strip_rows + 4, pitch))
    totals = z.new_empty((n, num_splits, chunks)) if config.split else None
    if d_attention is not None:
        d_attention = d_attention.contiguous()
    given = x if dy is None else dy  # dy's strides are not read where dy is None
    flat, flat_dy = is_flat(x), is_flat(given)
    arguments: tuple[Any, ...] = (
        dy, d_attention, x, scale.contiguous(), None if shift is None else shift.contiguous(), v.contiguous(),
        z, lse, dx, partials, da, scratch, totals, h, w, c, group, num_splits, strips, strip_rows, chunks, chunk,
        width, pitch, *given.stride(), *x.stride(), *dx.stride(),
    )  # fmt: skip
    constants: dict[str, Any] = {
        **tiles(config, group),
        **march_tile(config, w, channels_last),
        "RELU_U": relu_u,
        "RELU_Z": relu_z,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        "FLAT_DY": flat_dy,
        "VEC": vector_width(channels_last, group, x) if flat else 1,
        "VEC_DY": vector_width(channels_last, group, given) if flat_dy else 1,
        "WIDE": is_wide(x) or is_wide(given) or is_wide(dx),
    }
    slabs = n * num_splits
    with device_of(x):
        if config.split:
            backward_kernel[(slabs, chunks)](*arguments, REDUCE=True, MARCH=False, **constants)
            backward_kernel[(slabs, strips)](*arguments, REDUCE=False, MARCH=True, **constants)
        else:
            backward_kernel[(slabs, 1)](*arguments, REDUCE=True, MARCH=True, **constants)
    sizes = [c] * (2 if shift is None else 3) + ([num_splits] if relu_z else [])
    # copies, since gradients must not share memory
    sums = torch.ops.aten.split_with_sizes_copy(partials.sum((0, 1)).to(scale.dtype), sizes)
    db = None
    if b is not None:  # without act_z the softmax does not see b
        db = sums[-1] if relu_z else torch.zeros_like(b)
    return dx, sums[1], None if shift is None else sums[2], sums[0], db
