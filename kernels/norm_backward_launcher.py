"""Host side of the backward of the form with BatchNorm on the statistics of this batch."""

from typing import Any

import torch
from torch import Tensor

from . import config as configs
from .config import ROWS, LaunchConfig, cdiv, next_power_of_2
from .geometry import device_of, is_channels_last, is_flat, compared_size, is_wide, march_tile, num_sms, tiles, vector_width
from .launcher import Group
from .norm_backward import norm_complete_kernel, norm_march_kernel, norm_reduce_kernel

FLAT_PROGRAMS_PER_SM = 8  # of the passes but the march, which reads five sums of each of the first pass's programs


def norm_backward(
    dy: Tensor | None,  # [N, C, H, W], any strides
    d_attention: Tensor | None,  # [N, g, H, W]
    x: Tensor,  # [N, C, H, W], N not 0
    dw: Tensor,  # [C]
    gamma1: Tensor | None,  # [C]; None: dw and beta1 are a given affine map
    beta1: Tensor | None,  # [C]
    pw: Tensor,  # [C]
    gamma2: Tensor | None,  # [g]; None: beta2 is a bias
    beta2: Tensor | None,  # [g]
    z: Tensor,  # [N, g, H, W]
    lse: Tensor,  # [N, g]
    first: Tensor,  # [5, C]: scale, mean, rstd, variance, count; read where gamma1 is given
    second: Tensor,  # [6, g]: gain, offset, mean, rstd, variance, count
    num_splits: int,
    eps1: float,
    relu_u: bool,
    relu_z: bool,
    group: Group | None = None,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2; three launches and a sum over programs in a fixed order.

    Gradients of parameters are those of this process. Without gamma1 there is no third launch.
    """
    n, c, h, w = x.shape
    dx = torch.empty_like(x)
    channels_last = is_channels_last(x)
    size = c // num_splits
    if config is None:
        config = configs.backward_config((n, c, h, w), num_splits, x.element_size(), channels_last, num_sms(x.device), compared_size(x.dtype))
    strip_rows = config.strip_rows or h
    strips = cdiv(h, strip_rows)
    chunk = chunk_pixels(config, n * num_splits, h, w, num_sms(x.device))
    chunks = cdiv(h * w, chunk)
    width = (2 if gamma1 is None and beta1 is None else 3) * c
    da = torch.empty_like(z)
    sums = z.new_empty((num_splits, 5, n, chunks))
    partials = z.new_empty((n, strips, width))
    pitch = configs.border_pitch(w, config, channels_last)
    scratch = z.new_empty((n, num_splits, strips, 2, strip_rows + 4, pitch))
    dgamma2 = None if gamma2 is None else torch.empty_like(gamma2, memory_format=torch.contiguous_format)
    dbeta2 = None if beta2 is None else torch.empty_like(beta2, memory_format=torch.contiguous_format)
    dw, pw = dw.contiguous(), pw.contiguous()
    beta1 = None if beta1 is None else beta1.contiguous()
    d_attention = None if d_attention is None else d_attention.contiguous()

    given = x if dy is None else dy  # dy's strides are not read where dy is None
    flat, flat_dy = is_flat(x), is_flat(given)
    options = tiles(config, size) | march_tile(config, w, channels_last)
    common: dict[str, Any] = {
        **{name: options.pop(name) for name in ("BLOCK_P", "num_warps", "maxnreg") if name in options},
        "RELU_Z": relu_z,
        "CHANNELS_LAST": channels_last,
        "VEC_DY": vector_width(channels_last, size, given) if flat_dy else 1,
        "WIDE": is_wide(x) or is_wide(given) or is_wide(dx),
    }
    flat_dx = flat and is_flat(dx)
    vec = vector_width(channels_last, size, x) if flat else 1
    vec_dx = vector_width(channels_last, size, x, dx) if flat_dx else 1
    block_k = options.pop("BLOCK_K")
    block_i = min(next_power_of_2(chunks), 32)
    slabs = n * num_splits
    with device_of(x):
        norm_reduce_kernel[(slabs, chunks)](
            dy, d_attention, x, z, lse, second, da, sums, h, w, size, num_splits, n, chunks, chunk,
            *given.stride(), *x.stride(), BLOCK_K=block_k, FLAT=flat, FLAT_DY=flat_dy, VEC=vec, **common,
        )  # fmt: skip
        summed2 = None
        if group is not None and gamma2 is not None:
            summed2 = group.sum(logit_sums(sums, relu_z))
        norm_march_kernel[(slabs, strips)](
            dy if gamma1 is None else None, x, dw if gamma1 is None else first, beta1,
            None if gamma1 is None else first[1], pw, z, lse, second, da, sums, summed2, dgamma2, dbeta2, dx, partials,
            scratch, h, w, c, size, num_splits, n, strips, strip_rows, chunks, width, pitch,
            *given.stride(), *x.stride(), *dx.stride(), BLOCK_N=32 * config.num_warps // block_i, BLOCK_I=block_i,
            RELU_U=relu_u, BATCH_Z=gamma2 is not None, SUM_IMAGES=gamma2 is not None or beta2 is not None,
            VEC=vec_dx, **options, **common,
        )  # fmt: skip
        totals = partials.sum((0, 1))
        if gamma1 is None:
            # copies, since gradients must not share memory
            parts = torch.ops.aten.split_with_sizes_copy(totals, [c] * (width // c))
            dbeta1 = None if beta1 is None else parts[1].to(beta1.dtype)
            return dx, parts[0].to(dw.dtype), None, dbeta1, parts[-1].to(pw.dtype), dgamma2, dbeta2
        gamma1 = gamma1.contiguous()
        ddw, dgamma1, dpw = torch.empty_like(dw), torch.empty_like(gamma1), torch.empty_like(pw)
        dbeta1 = None if beta1 is None else torch.empty_like(beta1)
        summed1 = totals if group is None else group.sum(totals[: 2 * c])
        norm_complete_kernel[(slabs, chunks)](
            dy, x, dw, gamma1, z, lse, first, second, totals, summed1, dx, ddw, dgamma1, dbeta1, dpw,
            h, w, c, size, num_splits, chunk, *given.stride(), *x.stride(), *dx.stride(), EPS_1=eps1,
            FLAT=flat_dx, FLAT_DY=flat_dy, VEC=vec_dx, **{**common, **half_tile(config, channels_last)},
        )  # fmt: skip
    return dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2


def chunk_pixels(config: LaunchConfig, slabs: int, h: int, w: int, num_sms: int) -> int:
    """Pixels per program of the flat passes: as many strips as fill the GPU, in whole tiles."""
    strip_rows = config.strip_rows or ROWS
    wanted = cdiv(FLAT_PROGRAMS_PER_SM * num_sms, slabs)  # programs per slab
    rows = max(cdiv(h, strip_rows) // wanted, 1) * strip_rows
    return cdiv(rows * w, config.block_p) * config.block_p


def half_tile(config: LaunchConfig, channels_last: bool) -> dict[str, int]:
    """Half the flat tile, in runs of the same length: whole ones of three tensors spill where strides are odd."""
    halves = (2, 1) if channels_last else (1, 2)
    return {
        name: max(size // half, 1)
        for name, size, half in zip(("BLOCK_P", "BLOCK_K"), (config.block_p, config.block_k), halves, strict=True)
    }


def logit_sums(sums: Tensor, relu_z: bool) -> Tensor:
    """The sums of dl and of dl * zhat over this process's images [2, g], from those of chunks [g, 5, N, chunks]."""
    t0, t1, t2, t3, t4 = sums.sum(-1).unbind(1)
    dl = (t1 - t0 * t2).sum(-1) if relu_z else sums.new_zeros(sums.shape[0])
    return torch.stack((dl, (t3 - t0 * t4).sum(-1)))
