"""Host side of the backward of the form with BatchNorm on the statistics of this batch."""

import torch
from torch import Tensor

from .backend import Group
from .launching.config import LaunchConfig
from .launching.geometry import device_of
from .launching.norm_plans import norm_backward_plan


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
    given = x if dy is None else dy  # dy's strides are not read where dy is None
    plan = norm_backward_plan(
        x.shape, x.stride(), x.dtype, x.device, given.stride(), given.dtype, num_splits, eps1, relu_u, relu_z,
        gamma1 is not None, gamma2 is not None, beta1 is not None, beta2 is not None, config,
    )  # fmt: skip
    dx = torch.empty_like(x)
    da = torch.empty_like(z)
    sums = z.new_empty_strided(*plan.sums)
    partials = z.new_empty_strided(*plan.partials)
    dgamma2, dbeta2 = _gradient_of(gamma2), _gradient_of(beta2)
    dw, pw = dw.contiguous(), pw.contiguous()
    beta1 = None if beta1 is None else beta1.contiguous()
    d_attention = None if d_attention is None else d_attention.contiguous()
    with device_of(x):
        plan.reduce((dy, d_attention, x, z, lse, second, da, sums))
        summed2 = None
        if group is not None and gamma2 is not None:
            summed2 = group.sum(logit_sums(sums, relu_z))
        plan.march((
            dy if gamma1 is None else None, x, dw if gamma1 is None else first, beta1,
            None if gamma1 is None else first[1], pw, z, lse, second, da, sums, summed2, dgamma2, dbeta2, dx, partials,
            z.new_empty_strided(*plan.scratch),
        ))  # fmt: skip
        totals = partials.sum((0, 1))
        if gamma1 is None or plan.complete is None:
            # copies, since gradients must not share memory
            c = x.shape[1]
            parts = torch.ops.aten.split_with_sizes_copy(totals, [c] * (plan.width // c))
            dbeta1 = None if beta1 is None else parts[1].to(beta1.dtype)
            return dx, parts[0].to(dw.dtype), None, dbeta1, parts[-1].to(pw.dtype), dgamma2, dbeta2
        gamma1 = gamma1.contiguous()
        ddw, dgamma1, dpw = torch.empty_like(dw), torch.empty_like(gamma1), torch.empty_like(pw)
        dbeta1 = _gradient_of(beta1)
        summed1 = totals if group is None else group.sum(totals[: 2 * x.shape[1]])
        plan.complete((
            dy, x, dw, gamma1, z, lse, first, second, totals, summed1, dx, ddw, dgamma1, dbeta1, dpw,
        ))  # fmt: skip
    return dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2


def _gradient_of(p: Tensor | None) -> Tensor | None:
    return None if p is None else torch.empty_like(p, memory_format=torch.contiguous_format)


def logit_sums(sums: Tensor, relu_z: bool) -> Tensor:
    """The sums of dl and of dl * zhat over this process's images [2, g], from those of chunks [g, 5, N, chunks]."""
    t0, t1, t2, t3, t4 = sums.sum(-1).unbind(1)
    dl = (t1 - t0 * t2).sum(-1) if relu_z else sums.new_zeros(sums.shape[0])
    return torch.stack((dl, (t3 - t0 * t4).sum(-1)))
