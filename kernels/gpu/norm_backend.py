"""Host side of the kernels with BatchNorm: allocate what the plan of a call says, launch."""

import ctypes

import torch
from torch import Tensor

from .backend import Group
from .launching.config import LaunchConfig, MomentsConfig
from .launching.geometry import device_of
from .launching.norm_plans import moments_plan, norm_forward_plan
from .launching.plans import forward_plan

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
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """y, A (None unless needed), z, lse, first and second; three launches, or two where dw has no norm.

    first: [5, C], rows scale, mean, rstd, biased variance and count, or empty; second: [6, g], rows gain, offset, mean,
    rstd, biased variance and count.
    """
    x_moments = None if gamma1 is None else _exchanged(_partial_moments(x, first_config), group)
    x_parts = 0 if x_moments is None else x_moments.shape[0]
    geometry = (x.shape, x.stride(), x.dtype, x.device, num_splits, eps1, eps2, relu_u, relu_z, out_dtype, x_parts)
    plan = norm_forward_plan(*geometry, None if gamma2 is not None else 0, config)
    y = torch.empty_like(x) if out_dtype is None else torch.empty_like(x, dtype=out_dtype)
    z = x.new_empty_strided(*plan.z, dtype=plan.map_dtype)
    lse = z.new_empty_strided(*plan.lse)
    attention = torch.empty_like(z) if need_attention else None
    first = z.new_empty(0) if gamma1 is None else z.new_empty_strided(*plan.first)
    second = z.new_empty_strided(*plan.second)
    shift = None if gamma1 is None else z.new_empty_strided(*plan.shift)
    z_moments = None if gamma2 is None else z.new_empty_strided(*plan.z_moments)
    with device_of(x):
        plan.logits(
            (
                x, x_moments, dw.contiguous(), _contiguous(gamma1), _contiguous(beta1), pw.contiguous(),
                None if gamma1 is None else first, shift, *_running(running1), z, z_moments,
            ),
            _float_pair(running1),
        )  # fmt: skip
        if z_moments is not None and group is not None:
            z_moments = _exchanged(z_moments, group)
            plan = norm_forward_plan(*geometry, z_moments.shape[0], config)
        plan.apply(
            (
                x, z, z_moments, _contiguous(gamma2), _contiguous(beta2), y, attention, lse, second,
                *_running(running2),
            ),
            _float_pair(running2),
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
) -> tuple[Tensor, Tensor | None]:
    """y, and A (None unless needed), with running statistics; one launch, or two when split."""
    gamma1, beta1, mean1, var1, eps1 = (None, None, None, None, 0.0) if norm1 is None else norm1
    gamma2, beta2, mean2, var2, eps2 = norm2
    plan = forward_plan(
        x.shape, x.stride(), x.dtype, x.device, num_splits, relu_u and dw is not None, relu_z, out_dtype, config,
        (eps1, eps2),
    )  # fmt: skip
    y = torch.empty_like(x) if out_dtype is None else torch.empty_like(x, dtype=out_dtype)
    z = x.new_empty_strided(*plan.z, dtype=plan.map_dtype)
    attention = torch.empty_like(z) if need_attention else None
    parameters = (dw, dw_bias, gamma1, beta1, mean1, var1, pw, pw_bias, gamma2, beta2, mean2, var2)
    tensors = (
        x, *[None if t is None else t.contiguous() for t in parameters], z.new_empty_strided(*plan.folded), y,
        attention, z, None if plan.stats is None else z.new_empty_strided(*plan.stats),
    )  # fmt: skip
    with device_of(x):
        for launch in plan.launches:
            launch(tensors)
    return y, attention


def _partial_moments(x: Tensor, config: MomentsConfig | None) -> Tensor:
    """[P, 3, C]: count, mean and M2 of every part of every channel."""
    plan = moments_plan(x.shape, x.stride(), x.dtype, x.device, config)
    parts = x.new_empty_strided(*plan.parts, dtype=plan.map_dtype)
    with device_of(x):
        plan.launch((x, parts))
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


def _running(running: Running | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (None, None, None) if running is None else (running[0], running[1], _contiguous(running[2]))


def _float_pair(running: Running | None) -> tuple[float, float]:
    """The momentum as the sum of two float32, the only type in which Triton passes floats."""
    momentum = 0.0 if running is None else running[3]
    high = ctypes.c_float(momentum).value
    return high, momentum - high


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
