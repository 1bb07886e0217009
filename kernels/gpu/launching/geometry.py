"""How tensors lie in memory, as launches need to know it, and on which device they are."""

import contextlib
import functools
import math

import torch
from torch import Tensor

from .config import LaunchConfig, has_halo


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


def march_tile(config: LaunchConfig, w: int, channels_last: bool) -> dict[str, int]:
    """What the march of the backward is told besides."""
    return {"COLUMNS": config.strip_columns, "HALO": has_halo(w, config, channels_last)}


def compared_size(dtype: torch.dtype) -> int:
    """Bytes in which values of x are compared: bfloat16 in float32, to which its maximum is promoted anyway."""
    return 4 if dtype == torch.bfloat16 else dtype.itemsize


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


def runs(x: Tensor, config: LaunchConfig) -> dict[str, int | bool]:
    """COLUMNS, the neighbouring columns of NCHW that one lane of the march holds, and SPAN, whether a warp has all."""
    columns = config.columns
    while x.shape[3] % columns or x.stride(2) % columns:
        columns //= 2
    span = x.stride(3) == 1 and x.shape[3] <= config.block_w <= 32 * columns
    return {"COLUMNS": columns if span else 1, "SPAN": span}


def run_cycle(group: int, x: Tensor, y: Tensor, config: LaunchConfig) -> dict[str, int]:
    """RUN, elements of at most 16 bytes, and CYCLE, channels after which runs begin at the same pixels; 1 if no use."""
    pixels = x.shape[2] * x.shape[3]
    lies = all(t.stride()[1:] == (pixels, t.shape[3], 1) for t in (x, y))
    run = 16 // min(x.element_size(), y.element_size()) if lies and not config.split else 1
    cycle = run // math.gcd(run, pixels)
    while group % cycle or x.stride(0) % run or y.stride(0) % run:
        run //= 2
        cycle = run // math.gcd(run, pixels)
    return {"CYCLE": cycle, "RUN": run} if cycle > 1 else {"CYCLE": 1, "RUN": 1}


CPU_SMS = 1
"""Multiprocessors that launches on a CPU are planned for: the interpreter's programs run one after the other."""


def num_sms(device: torch.device) -> int:
    """Multiprocessors of the GPU."""
    return _gpu_sms(device) if device.type == "cuda" else CPU_SMS


@functools.lru_cache
def _gpu_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which kernels for x are launched: the process may have another GPU selected."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return _NOTHING


_NOTHING = contextlib.nullcontext()
