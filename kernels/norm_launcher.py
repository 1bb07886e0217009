"""Host side of the kernels with BatchNorm: allocate, choose the launch configuration, launch."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from . import config as configs
from .config import ROWS, LaunchConfig, MomentsConfig, cdiv
from .geometry import device_of, is_channels_last, is_flat, is_wide, num_sms, run_cycle, runs, tiles, vector_width
from .launcher import Group
from .moments import moments_kernel
from .norm_forward import folded_kernel, norm_apply_kernel, norm_logits_kernel
from .plans import forward_plan

Running = tuple[Tensor, Tensor, Tensor | None, float]
"""running_mean and running_var, contiguous and updated in place; bias of the convolution before the norm; momentum."""

RunningNorm = tuple[Tensor, Tensor | None, Tensor, Tensor, float]
"""gamma, beta, running_mean, running_var, eps of a norm that uses its running statistics."""


def moments(x: Tensor, group: Group | None = None, *, config: MomentsConfig | None = None) -> Tensor:
    """[3, C]: mean, biased variance and count of every channel of x [N, C, H, W]."""
    count, mean, m2 = _combined(_exchanged(_partial_moments(x, config), group))[0]
    return torch.stack((mean, m2 / count, count))


def norm_forward(
    x: Tensor,  # [N, C, H, W], not empty
    dw: Tensor,  # [C]
    gamma1: Tensor | None,  # [C]; None: dw and beta1 are scale and shift
    beta1: Tensor | None,  # [C]
    pw: Tensor,  # [C]
    gamma2: Tensor | None,  # [g]; None: beta2 is a bias
    beta2: Tensor | None,  # [g]
    num_splits: int,
    eps1: float,
    eps2: float,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    running1: Running | None = None,
    running2: Running | None = None,
    group: Group | None = None,
    *,
    config: LaunchConfig | None = None,
    first_config: MomentsConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, A (empty unless needed), z, lse, first and second; three launches, or two where dw has no norm.

    first: [5, C], rows scale, mean, rstd, biased variance and count, or empty; second: [6, g], rows gain, offset, mean,
    rstd, biased variance and count.
    """
    n, c, h, w = x.shape
    g = num_splits
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.norm_forward_config((n, c, h, w), g, x.element_size(), channels_last, num_sms(x.device))
    strips, strip_rows, chunk = _cut(config, h, w)
    map_dtype = _map_dtype(x)
    y = torch.empty_like(x, dtype=out_dtype)
    z = torch.empty((n, g, h, w), dtype=map_dtype, device=x.device)
    lse = torch.empty((n, g), dtype=map_dtype, device=x.device)
    attention = torch.empty_like(z) if need_attention else z.new_empty(0)
    first = z.new_empty((5, c) if gamma1 is not None else 0)
    second = z.new_empty((6, g))
    shift = z.new_empty(c) if gamma1 is not None else None
    x_moments = None if gamma1 is None else _exchanged(_partial_moments(x, first_config), group)
    z_moments = None if gamma2 is None else z.new_empty((n * strips, 3, g))
    flat = is_flat(x) and is_flat(y)
    block_m, block_parts = configs.combine_blocks(c // g, config.num_warps)
    constants = tiles(config, c // g)
    apply_constants = {name: value for name, value in constants.items() if name not in _MARCH_ONLY}
    march_constants = {name: value for name, value in constants.items() if name not in _FLAT_ONLY}
    shared: dict[str, Any] = {
        "BLOCK_Z": 128 * config.num_warps,
        "CHANNELS_LAST": channels_last,
        "VEC": vector_width(channels_last, c // g, x, y) if flat else 1,
        "WIDE": is_wide(x) or is_wide(y),
    }
    with device_of(x):
        norm_logits_kernel[(n * g, strips)](
            x, x_moments, dw.contiguous(), _contiguous(gamma1), _contiguous(beta1), pw.contiguous(),
            None if gamma1 is None else first, shift, *_running(running1), z, z_moments,
            *_float_pair(running1), 0 if x_moments is None else x_moments.shape[0],
            h, w, c // g, g, strips, strip_rows, *x.stride(),
            EPS=eps1, ROWS=ROWS, BLOCK_M=block_m, BLOCK_PARTS=block_parts, RELU_U=relu_u,
            **march_constants, **runs(x, config), **shared,
        )  # fmt: skip
        if z_moments is not None:
            z_moments = _exchanged(z_moments, group)
        norm_apply_kernel[(n * g, cdiv(h * w, chunk))](
            x, z, z_moments, _contiguous(gamma2), _contiguous(beta2), y, attention if need_attention else None, lse,
            second, *_running(running2), *_float_pair(running2), 0 if z_moments is None else z_moments.shape[0],
            h, w, c // g, g, chunk, *x.stride(), *y.stride(),
            EPS=eps2, RELU_Z=relu_z, FLAT=flat, **apply_constants, **run_cycle(c // g, x, y, config), **shared,
        )  # fmt: skip
    for running in (running1, running2):
        if running is not None:  # what autograd has saved of them is not what it was
            torch.autograd.graph.increment_version(running[:2])
    return y, attention, z, lse, first, second


def folded_forward(
    x: Tensor,  # [N, C, H, W]
    dw: Tensor | None,  # [C]; None: x itself is pooled
    dw_bias: Tensor | None,  # [C]
    norm1: RunningNorm | None,
    pw: Tensor,  # [C]
    pw_bias: Tensor | None,  # [g]
    norm2: RunningNorm,
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """y, and A (empty unless needed), with running statistics; one launch, or two when split."""
    relu_u = relu_u and dw is not None
    plan = forward_plan(x.shape, x.stride(), x.dtype, x.device, num_splits, relu_u, relu_z, out_dtype, config)
    y = torch.empty_like(x, dtype=out_dtype)
    z = torch.empty(plan.z_shape, dtype=plan.map_dtype, device=x.device)
    attention = torch.empty_like(z) if need_attention else z.new_empty(0)
    if x.numel() == 0:
        return y, attention
    c = x.shape[1]
    gamma1, beta1, mean1, var1, eps1 = (None, None, None, None, 0.0) if norm1 is None else norm1
    gamma2, beta2, mean2, var2, eps2 = norm2
    parameters = (dw, dw_bias, gamma1, beta1, mean1, var1, pw, pw_bias, gamma2, beta2, mean2, var2)
    arguments: tuple[Any, ...] = (
        x, *map(_contiguous, parameters), z.new_empty((3, c)), y, attention if need_attention else None, z,
        None if plan.stats_shape is None else z.new_empty(plan.stats_shape), *plan.numbers,
    )  # fmt: skip
    with device_of(x):
        for grid, constants in plan.launches:
            block_m, _ = configs.combine_blocks(c // num_splits, constants["num_warps"])
            folded_kernel[grid](*arguments, EPS1=eps1, EPS2=eps2, BLOCK_M=block_m, **constants)
    return y, attention


_MARCH_ONLY = ("BLOCK_C", "BLOCK_W", "EVEN_C")
_FLAT_ONLY = ("BLOCK_P", "BLOCK_K")


def _partial_moments(x: Tensor, config: MomentsConfig | None) -> Tensor:
    """[P, 3, C]: count, mean and M2 of every part of every channel."""
    n, c, h, w = x.shape
    channels_last = is_channels_last(x)
    if config is None:
        config = configs.moments_config((n, c, h, w), x.element_size(), channels_last, num_sms(x.device))
    parts = torch.empty((config.parts, 3, c), dtype=_map_dtype(x), device=x.device)
    flat = is_flat(x)
    options: dict[str, int] = {"num_warps": config.num_warps}
    if torch.version.hip is None:  # AMD's compiler has no limit of registers
        options["maxnreg"] = config.max_registers
    with device_of(x):
        moments_kernel[(cdiv(c, config.block_c), config.parts)](
            x, parts, n, c, h, w, config.part_pixels, *x.stride(),
            BLOCK_C=config.block_c, BLOCK_P=config.block_p, CHANNELS_LAST=channels_last, FLAT=flat,
            VEC=vector_width(channels_last, c, x) if flat else 1,
            WIDE=is_wide(x) or n * h * w >= 2**30, **options,
        )  # fmt: skip
    return parts


def _exchanged(parts: Tensor, group: Group | None) -> Tensor:
    """Partial moments [P, 3, K] of this process, or of all."""
    return parts if group is None else group.gather(_combined(parts)).contiguous()


def _combined(parts: Tensor) -> Tensor:
    """Partial moments [P, 3, K] as those of one part, [1, 3, K]."""
    count, mean, m2 = parts.unbind(1)
    n = count.sum(0)
    mean_all = mean[0] + (count * (mean - mean[0])).sum(0) / n
    return torch.stack((n, mean_all, (m2 + count * (mean - mean_all).square()).sum(0))).unsqueeze(0)


def _cut(config: LaunchConfig, h: int, w: int) -> tuple[int, int, int]:
    """Strips of a map, rows of a strip, and pixels of a chunk."""
    if not config.split:
        return 1, h, h * w
    return cdiv(h, config.strip_rows), config.strip_rows, configs.chunk_pixels(w, config)


def _running(running: Running | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (None, None, None) if running is None else (running[0], running[1], _contiguous(running[2]))


def _float_pair(running: Running | None) -> tuple[float, float]:
    """The momentum as the sum of two float32, the only type in which Triton passes floats."""
    momentum = 0.0 if running is None else running[3]
    high = ctypes.c_float(momentum).value
    return high, momentum - high


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _map_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
