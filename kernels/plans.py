"""What a forward launches, but for its tensors: a pure function of x's geometry, kept, since a call has no time for it.

On a CPU, the launch being stubbed, choosing anew cost 20 of the 37 microseconds that this package adds to Triton's own
(`benchmarks/host.py`).
"""

import dataclasses
import functools
from typing import Any

import torch

from . import config as configs
from .config import ROWS, LaunchConfig, cdiv
from .geometry import is_channels_last, is_flat, is_wide, num_sms, run_cycle, runs, tiles, vector_width


@dataclasses.dataclass(frozen=True)
class ForwardPlan:
    """Of `forward_kernel` and of its form with folded norms."""

    launches: tuple[tuple[tuple[int, int], dict[str, Any]], ...]  # grid and constants of each
    numbers: tuple[int, ...]  # the kernel's arguments from H to y_stride_w
    z_shape: tuple[int, int, int, int]  # [N, g, H, W]
    stats_shape: tuple[int, int, int, int] | None  # [N, g, strips, 2], where one launch leaves something to the next
    map_dtype: torch.dtype


@functools.lru_cache(maxsize=1024)
def forward_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    config: LaunchConfig | None,  # None: chosen here
) -> ForwardPlan:
    """For x [N, C, H, W] of this shape, stride, type and device, not empty."""
    n, c, h, w = shape
    x = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    y = torch.empty_like(x, dtype=out_dtype)
    group = c // num_splits
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.forward_config((n, c, h, w), num_splits, dtype.itemsize, channels_last, num_sms(device))
    strips = cdiv(h, config.strip_rows) if config.split else 1
    chunk = configs.chunk_pixels(w, config)
    flat = is_flat(x) and is_flat(y)
    constants = {
        **tiles(config, group),
        "ROWS": ROWS,
        **runs(x, config),
        "RELU_U": relu_u,
        "RELU_Z": relu_z,
        "CHANNELS_LAST": channels_last,
        "FLAT": flat,
        **run_cycle(group, x, y, config),
        "VEC": vector_width(channels_last, group, x, y) if flat else 1,
        "WIDE": is_wide(x) or is_wide(y),
    }
    slabs = n * num_splits
    phases = [((slabs, 1), True, True)]
    if config.split:
        phases = [((slabs, strips), True, False), ((slabs, cdiv(h * w, chunk)), False, True)]
    return ForwardPlan(
        launches=tuple((grid, {**constants, "LOGITS": logits, "APPLY": apply}) for grid, logits, apply in phases),
        numbers=(h, w, group, num_splits, strips, config.strip_rows or h, chunk, *stride, *y.stride()),
        z_shape=(n, num_splits, h, w),
        stats_shape=(n, num_splits, strips, 2) if config.split else None,
        map_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )
