"""The operator between BatchNorms on a CPU: statistics of this batch, or of before, folded into the parameters.

With the symbols of forward.cpp and backward.cpp, M = N*H*W, mean and var over (N, H, W), all variances biased:

    r1 = 1 / sqrt(dw^2 var(x) + eps),   scale = gamma1 dw r1,   shift = beta1 - scale mean(x)
    r2 = 1 / sqrt(var(z) + eps),        gain = gamma2 r2,       offset = beta2 - gain mean(z)
    A = softmax of act_z(gain z + offset)

The biases of both convolutions cancel. Backward, with zhat = (z - mean(z)) r2, xc = x - mean(x), du = v s and < > the
mean over (N, H, W):

    dgamma2 = sum dl zhat,  dbeta2 = sum dl,  and dl is replaced by dz = gain (dl - <dl> - zhat <dl zhat>)
    S1 = sum du,  S2 = sum du xc;  dbeta1 = S1,  dgamma1 = S2 dw r1,  ddw = gamma1 S2 eps r1^3
    dx = D (1 + A) + scale (du - S1 / M - xc (dw r1)^2 S2 / M)

Forward reads x three times and backward twice, then dx waits for S1 and S2 and x is read once more. What is done here
in PyTorch is of the size of the maps z or of the parameters. Either norm may be absent: then (dw, beta1) are scale and
shift, or beta2 is b. Over several processes, moments and sums are exchanged through `group`.
"""

import torch
from torch import Tensor

from ..batch_norm import combine, mark_updated
from ..contract import (
    Exchange,
    FixedNorm,
    Group,
    NormForward,
    NormGradients,
    NormInputs,
    NormSaved,
    Options,
)
from .backend import given_gradient, given_map, is_wider, operator, without_gradients

_NOT_UPDATED = (None, None, None, 0.0)  # in place of a Running
_NO_NORM = (None, None, None, None, 0.0)  # in place of a FixedNorm


@without_gradients
def norm_forward(inputs: NormInputs, options: Options, exchange: Exchange) -> NormForward:
    """A is None unless needed, and first is empty without the depthwise norm."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    running1, running2, group = exchange
    own1, own2 = running1 or _NOT_UPDATED, running2 or _NOT_UPDATED
    g, relu_u, relu_z, out_dtype, need_attention, _, eps1, eps2, _ = options
    wide = out_dtype is not None and is_wider(out_dtype, x)
    if group is None:
        y, attention, z, lse, first, second = operator("norm_forward")(
            x, dw, gamma1, beta1, eps1, *own1, pw, gamma2, beta2, eps2, *own2, g, relu_u, relu_z, wide, need_attention
        )
    else:
        first, z = operator("norm_logits")(x, gathered(x, gamma1, group), dw, gamma1, beta1, eps1, *own1, pw, g, relu_u)
        y, attention, lse, second = operator("norm_apply")(
            x, z, gathered(z, gamma2, group), gamma2, beta2, eps2, *own2, relu_z, wide, need_attention
        )
    mark_updated(exchange)
    return NormForward(y if out_dtype is None else y.to(out_dtype), attention, z, lse, first, second)


@without_gradients
def norm_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: NormInputs,
    saved: NormSaved,
    options: Options,
    group: Group | None = None,
) -> NormGradients:
    """Each in the type of its own; dx with the strides of empty_like(x)."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    z, _, first, second = saved
    relu_u, relu_z, eps1 = options.relu_u, options.relu_z, options.eps1
    dy, d_attention = given_gradient(dy, x), given_map(d_attention, z)
    if group is None:
        return NormGradients(
            *operator("norm_backward")(dy, d_attention, *inputs, z, first, second, eps1, relu_u, relu_z)
        )
    dl, totals, dgamma2, dbeta2 = operator("norm_logit_gradient")(dy, d_attention, x, z, second, gamma2, beta2, relu_z)
    dx, ddw, dgamma1, dbeta1, dpw, S = operator("norm_route")(
        dy if gamma1 is None else None, x, dw, None if gamma1 is None else first, gamma1, beta1, pw, z, second, dl,
        None if gamma2 is None else group.sum(totals), eps1, relu_u, relu_z,
    )  # fmt: skip
    if gamma1 is not None:
        operator("norm_complete")(dy, x, z, second, first, dw, group.sum(S), dx, relu_z)
    return NormGradients(dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2)


@without_gradients
def folded_forward(
    x: Tensor,
    dw: Tensor | None,
    dw_bias: Tensor | None,
    norm1: FixedNorm | None,
    pw: Tensor,
    pw_bias: Tensor | None,
    norm2: FixedNorm,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    """y and A, with both norms' running statistics; no gradients."""
    g, relu_u, relu_z, out_dtype, need_attention = options[:5]
    y, attention = operator("folded_forward")(
        x, dw, dw_bias, *norm1 or _NO_NORM, pw, pw_bias, *norm2, g, relu_u, relu_z,
        out_dtype is not None and is_wider(out_dtype, x), need_attention,
    )  # fmt: skip
    return y if out_dtype is None else y.to(out_dtype), attention


@without_gradients
def moments(x: Tensor, group: Group | None = None) -> Tensor:
    """Mean, biased variance and count of every channel of x [N, C, H, W]: [3, C]."""
    parts = operator("moments")(x)
    count, mean, m2 = parts if group is None else _combined(parts, group)
    return torch.stack((mean, m2 / count, count))


def gathered(x: Tensor, gamma: Tensor | None, group: Group) -> Tensor | None:
    """Count, mean and M2 of every channel over all processes, [3, C]; None where no norm sees x."""
    return None if gamma is None else _combined(operator("moments")(x), group)


def _combined(parts: Tensor, group: Group) -> Tensor:
    return combine(group.gather(parts.unsqueeze(0)))
