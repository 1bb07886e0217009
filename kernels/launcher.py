"""Host side of the kernels: allocate, choose the launch configuration, launch under the tensor's own device."""

import contextlib
import functools
from typing import Any, Protocol

import torch
import triton
from torch import Tensor

from . import config as configs
from .backward import backward_kernel
from .config import ROWS, LaunchConfig, cdiv
from .forward import forward_kernel

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
    n, c, h, w = x.shape
    map_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty_like(x, dtype=out_dtype)
    z = torch.empty((n, num_splits, h, w), dtype=map_dtype, device=x.device)
    lse = torch.empty((n, num_splits) if need_lse else 0, dtype=map_dtype, device=x.device)
    attention = torch.empty_like(z) if need_attention else torch.empty(0, dtype=map_dtype, device=x.device)
    if x.numel() == 0:
        return y, attention, z, lse
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.forward_config((n, c, h, w), num_splits, x.element_size(), channels_last, num_sms(x.device))
    strips = cdiv(h, config.strip_rows) if config.split else 1
    chunk = configs.chunk_pixels(w, config)
    stats = torch.empty((n, num_splits, strips, 2), dtype=map_dtype, device=x.device) if config.split else None
    flat = is_flat(x) and is_flat(y)
    arguments: tuple[Any, ...] = (
        x, scale.contiguous(), None if shift is None else shift.contiguous(), v.contiguous(),
        None if b is None else b.contiguous(), y, attention if need_attention else None, z,
        lse if need_lse else None, stats,
        h, w, c // num_splits, num_splits, strips, config.strip_rows or h, chunk, *x.stride(), *y.stride(),
    )  # fmt: skip
    constants: dict[str, Any] = {
        **tiles(config, c // num_splits),
        "ROWS": ROWS,
        "RELU_U": relu_u,
        "RELU_Z": relu_z,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        "VEC": vector_width(channels_last, c // num_splits, x, y) if flat else 1,
        "WIDE": is_wide(x) or is_wide(y),
    }
    slabs = n * num_splits
    with device_of(x):
        if config.split:
            forward_kernel[(slabs, strips)](*arguments, LOGITS=True, APPLY=False, **constants)
            forward_kernel[(slabs, cdiv(h * w, chunk))](*arguments, LOGITS=False, APPLY=True, **constants)
        else:
            forward_kernel[(slabs, 1)](*arguments, LOGITS=True, APPLY=True, **constants)
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
        config = configs.backward_config((n, c, h, w), num_splits, x.element_size(), channels_last, num_sms(x.device))
    strip_rows = config.strip_rows or h
    strips = cdiv(h, strip_rows)
    chunk = configs.chunk_pixels(w, config)
    chunks = cdiv(h * w, chunk)
    width = (2 if shift is None else 3) * c + (num_splits if relu_z else 0)
    partials = z.new_empty((n, strips, width))
    da = torch.empty_like(z)
    scratch = z.new_empty((n, num_splits, strips, 2, (strip_rows + 2) * w))
    totals = z.new_empty((n, num_splits, chunks)) if config.split else None
    if d_attention is not None:
        d_attention = d_attention.contiguous()
    given = x if dy is None else dy  # dy's strides are not read where dy is None
    flat, flat_dy = is_flat(x), is_flat(given)
    arguments: tuple[Any, ...] = (
        dy, d_attention, x, scale.contiguous(), None if shift is None else shift.contiguous(), v.contiguous(),
        z, lse, dx, partials, da, scratch, totals, h, w, c, group, num_splits, strips, strip_rows, chunks, chunk,
        width, *given.stride(), *x.stride(), *dx.stride(),
    )  # fmt: skip
    constants: dict[str, Any] = {
        **tiles(config, group),
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


def tiles(config: LaunchConfig, group: int) -> dict[str, int]:
    """A configuration as constants of a kernel for G = group, and what it asks of the compiler."""
    options = {
        "BLOCK_C": config.block_c,
        "BLOCK_W": config.block_w,
        "BLOCK_P": config.block_p,
        "BLOCK_K": config.block_k,
        "EVEN_C": group % config.block_c == 0,
        "num_warps": config.num_warps,
    }
    if torch.version.hip is None:  # AMD's compiler has no limit of registers
        options["maxnreg"] = config.max_registers
    return options


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel are contiguous, and its neighbours are not."""
    return x.stride(1) == 1 and x.stride(3) != 1


def is_flat(x: Tensor) -> bool:
    """Whether one stride serves all pixels of a map."""
    return x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def is_wide(x: Tensor) -> bool:
    """Whether offsets inside one image need int64."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 2**31


def vector_width(channels_last: bool, group: int, *tensors: Tensor) -> int:
    """The largest power of two, 16 bytes at most, that divides the lengths and strides between contiguous runs."""
    width = 16 // min(t.element_size() for t in tensors)
    for t in tensors:
        lengths = (group, t.stride(0), t.stride(3)) if channels_last else (t.shape[2] * t.shape[3], *t.stride()[:2])
        while any(length % width for length in lengths):
            width //= 2
    return width


@functools.lru_cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of the GPU; 1 in the interpreter, whose programs run one after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which kernels for x are launched: the process may have another GPU selected."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
