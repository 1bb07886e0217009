"""The door of the Triton kernels for the form with BatchNorm: allocate what the plan of a call says, and launch.

See `contract.NormBackend` for shapes; `config` and `first_config` are for tests and measurements.
"""

import ctypes

import torch
from torch import Tensor

from ..batch_norm import combine, exchanged, mark_updated
from ..contract import (
    Exchange,
    FixedNorm,
    Group,
    InputStatistics,
    NormForward,
    NormGradients,
    NormInputs,
    NormSaved,
    Options,
    Running,
)
from .launching.config import LaunchConfig, MomentsConfig
from .launching.geometry import device_of
from .launching.norm_plans import moments_plan, norm_backward_plan, norm_forward_plan
from .launching.plans import forward_plan


def moments(x: Tensor, group: Group | None = None, *, config: MomentsConfig | None = None) -> Tensor:
    """[3, C]: mean, biased variance and count of every channel of x."""
    count, mean, m2 = combine(exchanged(_partial_moments(x, config), group))
    return torch.stack((mean, m2 / count, count))


def norm_forward(
    inputs: NormInputs,
    options: Options,
    exchange: Exchange,
    *,
    config: LaunchConfig | None = None,
    first_config: MomentsConfig | None = None,
) -> NormForward:
    """Three launches, or two where dw has no norm."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    running1, running2, group = exchange
    x_moments = None if gamma1 is None else exchanged(_partial_moments(x, first_config), group)
    x_parts = 0 if x_moments is None else x_moments.shape[0]
    z_parts = None if gamma2 is not None else 0
    plan = norm_forward_plan(x.shape, x.stride(), x.dtype, x.device, options, x_parts, z_parts, config)
    y = torch.empty_like(x) if options.out_dtype is None else torch.empty_like(x, dtype=options.out_dtype)
    z = x.new_empty_strided(*plan.z, dtype=plan.map_dtype)
    lse = z.new_empty_strided(*plan.lse)
    attention = torch.empty_like(z) if options.need_attention else None
    first = z.new_empty(0) if gamma1 is None else z.new_empty_strided(*plan.first)
    second = z.new_empty_strided(*plan.second)
    shift = None if gamma1 is None else z.new_empty_strided(*plan.shift)
    z_moments = None if gamma2 is None else z.new_empty_strided(*plan.z_moments)
    mean1, var1, bias1 = _buffers(running1)
    mean2, var2, bias2 = _buffers(running2)
    with device_of(x):
        plan.logits(
            (
                x, x_moments, dw.contiguous(), _contiguous(gamma1), _contiguous(beta1), pw.contiguous(),
                None if gamma1 is None else first, shift, mean1, var1, bias1, z, z_moments,
            ),
            _float_pair(running1),
        )  # fmt: skip
        if z_moments is not None and group is not None:
            z_moments = exchanged(z_moments, group)
            z_parts = z_moments.shape[0]
            plan = norm_forward_plan(x.shape, x.stride(), x.dtype, x.device, options, x_parts, z_parts, config)
        plan.apply(
            (
                x, z, z_moments, _contiguous(gamma2), _contiguous(beta2), y, attention, lse, second,
                mean2, var2, bias2,
            ),
            _float_pair(running2),
        )  # fmt: skip
    mark_updated(exchange)
    return NormForward(y, attention, z, lse, first, second)


def folded_forward(
    x: Tensor,
    dw: Tensor | None,
    dw_bias: Tensor | None,
    norm1: FixedNorm | None,
    pw: Tensor,
    pw_bias: Tensor | None,
    norm2: FixedNorm,
    options: Options,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One launch, or two when split."""
    if dw is None:  # what is pooled has no activation
        options = options._replace(relu_u=False)
    plan = forward_plan(x.shape, x.stride(), x.dtype, x.device, options, config, folded=True)
    y = torch.empty_like(x) if options.out_dtype is None else torch.empty_like(x, dtype=options.out_dtype)
    z = x.new_empty_strided(*plan.z, dtype=plan.map_dtype)
    attention = torch.empty_like(z) if options.need_attention else None
    gamma1 = beta1 = mean1 = var1 = None
    if norm1 is not None:
        gamma1, beta1, mean1, var1 = norm1.gamma, norm1.beta, norm1.mean, norm1.var
    parameters = (
        dw, dw_bias, gamma1, beta1, mean1, var1, pw, pw_bias, norm2.gamma, norm2.beta, norm2.mean, norm2.var,
    )  # fmt: skip
    tensors = (
        x, *[None if t is None else t.contiguous() for t in parameters], z.new_empty_strided(*plan.folded), y,
        attention, z, None if plan.stats is None else z.new_empty_strided(*plan.stats),
    )  # fmt: skip
    with device_of(x):
        for launch in plan.launches:
            launch(tensors)
    return y, attention


def norm_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: NormInputs,
    saved: NormSaved,
    options: Options,
    group: Group | None = None,
    *,
    config: LaunchConfig | None = None,
) -> NormGradients:
    """Three launches and a sum over programs in a fixed order. Without gamma1 there is no third launch."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    z, lse, first, second = saved
    given = x if dy is None else dy  # dy's strides are not read where dy is None
    plan = norm_backward_plan(
        x.shape, x.stride(), x.dtype, x.device, given.stride(), given.dtype, options,
        gamma1 is not None, gamma2 is not None, beta1 is not None, beta2 is not None, config,
    )  # fmt: skip
    dx = torch.empty_like(x)
    da = torch.empty_like(z)
    sums = z.new_empty_strided(*plan.sums)
    partials = z.new_empty_strided(*plan.partials)
    dgamma2, dbeta2 = _gradient_of(gamma2), _gradient_of(beta2)
    dw, pw = dw.contiguous(), pw.contiguous()
    beta1 = _contiguous(beta1)
    with device_of(x):
        plan.reduce((dy, _contiguous(d_attention), x, z, lse, second, da, sums))
        summed2 = None
        if group is not None and gamma2 is not None:
            summed2 = group.sum(logit_sums(sums, options.relu_z))
        plan.march((
            dy if gamma1 is None else None, x, dw if gamma1 is None else first, beta1,
            None if gamma1 is None else InputStatistics(*first).mean, pw, z, lse, second, da, sums, summed2,
            dgamma2, dbeta2, dx, partials, None if plan.scratch is None else z.new_empty_strided(*plan.scratch),
        ))  # fmt: skip
        totals = partials.sum((0, 1))
        if gamma1 is None or plan.complete is None:
            # copies, since gradients must not share memory
            c = x.shape[1]
            dscale, *dshift, dv = torch.ops.aten.split_with_sizes_copy(totals, [c] * (plan.width // c))
            dbeta1 = None if beta1 is None else dshift[0].to(beta1.dtype)
            return NormGradients(dx, dscale.to(dw.dtype), None, dbeta1, dv.to(pw.dtype), dgamma2, dbeta2)
        gamma1 = gamma1.contiguous()
        ddw, dgamma1, dpw = torch.empty_like(dw), torch.empty_like(gamma1), torch.empty_like(pw)
        dbeta1 = _gradient_of(beta1)
        summed1 = totals if group is None else group.sum(totals[: 2 * x.shape[1]])
        plan.complete((
            dy, x, dw, gamma1, z, lse, first, second, totals, summed1, dx, ddw, dgamma1, dbeta1, dpw,
        ))  # fmt: skip
    return NormGradients(dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2)


def logit_sums(sums: Tensor, relu_z: bool) -> Tensor:
    """The sums of dl and of dl * zhat over this process's images [2, g], from those of chunks [g, 5, N, chunks]."""
    t0, t1, t2, t3, t4 = sums.sum(-1).unbind(1)
    dl = (t1 - t0 * t2).sum(-1) if relu_z else sums.new_zeros(sums.shape[0])
    return torch.stack((dl, (t3 - t0 * t4).sum(-1)))


def _partial_moments(x: Tensor, config: MomentsConfig | None) -> Tensor:
    """[P, 3, C]: count, mean and M2 of every part of every channel."""
    plan = moments_plan(x.shape, x.stride(), x.dtype, x.device, config)
    parts = x.new_empty_strided(*plan.parts, dtype=plan.map_dtype)
    with device_of(x):
        plan.launch((x, parts))
    return parts


def _buffers(running: Running | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (None, None, None) if running is None else (running.mean, running.var, _contiguous(running.bias))


def _float_pair(running: Running | None) -> tuple[float, float]:
    """The momentum as the sum of two float32, the only type in which Triton passes floats."""
    momentum = 0.0 if running is None else running.momentum
    high = ctypes.c_float(momentum).value
    return high, momentum - high


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _gradient_of(p: Tensor | None) -> Tensor | None:
    return None if p is None else torch.empty_like(p, memory_format=torch.contiguous_format)
