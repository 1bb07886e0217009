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

from ..batch_norm import combine, mark_updated, without_norm
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
from .backend import compute_dtype, given_gradient, given_map, operator, stored_dtype

_NOT_UPDATED = (None, None, None, 0.0)  # in place of a Running
_NO_NORM = (None, None, None, None, 0.0)  # in place of a FixedNorm


def norm_forward(inputs: NormInputs, options: Options, exchange: Exchange) -> NormForward:
    """A is None unless needed, and first is empty without the depthwise norm."""
    forward_op, fold_op = operator("forward"), operator("norm_fold")
    num_splits, relu_u, relu_z, out_dtype = options.num_splits, options.relu_u, options.relu_z, options.out_dtype
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    running1, running2, group = exchange
    with torch.no_grad():
        dtype = compute_dtype(x)
        n, c, h, w = x.shape
        scale, shift = dw, beta1
        if gamma1 is None:
            first = x.new_empty(0, dtype=dtype)
        else:
            parts = _moments(x, group)
            first, shift = parts.new_empty(5, c), parts.new_empty(c)
            fold_op(parts, dw, gamma1, beta1, options.eps1, first, shift, *running1 or _NOT_UPDATED)
            scale = first[0]
        z = x.new_empty((n, num_splits, h, w), dtype=dtype)
        forward_op(x, scale, shift, pw, None, None, None, z, None, None, num_splits, relu_u, relu_z, True, False)
        if gamma2 is None:
            second = without_norm(z, beta2)
        else:
            second = z.new_empty(6, num_splits)
            fold_op(_moments(z, group), None, gamma2, beta2, options.eps2, second, None, *running2 or _NOT_UPDATED)
        y = torch.empty_like(x, dtype=stored_dtype(x, out_dtype))
        attention = torch.empty_like(z) if options.need_attention else None
        lse = z.new_empty(n, num_splits)
        forward_op(x, scale, None, pw, None, second, y, z, attention, lse, num_splits, relu_u, relu_z, False, True)
        mark_updated(exchange)
        return NormForward(y if out_dtype is None else y.to(out_dtype), attention, z, lse, first, second)


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
    num_splits, relu_u, relu_z = options.num_splits, options.relu_u, options.relu_z
    with torch.no_grad():
        dy = given_gradient(dy, x)
        dl, totals = torch.empty_like(z), z.new_empty(2, num_splits)
        operator("norm_logit_gradient")(
            dy, given_map(d_attention, z), x, z, second, dl, totals, num_splits, relu_z
        )  # fmt: skip
        dgamma2 = None if gamma2 is None else totals[1].to(gamma2.dtype, copy=True)
        dbeta2 = None
        if beta2 is not None:  # without act_z the softmax does not see a constant
            dbeta2 = (totals[0] if relu_z else totals[0] * 0).to(beta2.dtype, copy=True)
        dx = torch.empty_like(x)
        ddw, dpw = torch.empty_like(dw), torch.empty_like(pw)
        dgamma1, dbeta1 = (None if t is None else torch.empty_like(t) for t in (gamma1, beta1))
        S = z.new_empty(2, x.shape[1])
        operator("norm_route")(
            dy if gamma1 is None else None, x, dw, None if gamma1 is None else first, gamma1, beta1, pw, z, second, dl,
            None if gamma2 is None else totals if group is None else group.sum(totals), dx, ddw, dgamma1, dbeta1, dpw,
            S, num_splits, options.eps1, relu_u, relu_z,
        )  # fmt: skip
        if gamma1 is not None:
            S = S if group is None else group.sum(S)
            operator("norm_complete")(dy, x, z, second, first, dw, S, dx, num_splits, relu_z)
        return NormGradients(dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2)


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
    num_splits, out_dtype = options.num_splits, options.out_dtype
    with torch.no_grad():
        n, _, h, w = x.shape
        y = torch.empty_like(x, dtype=stored_dtype(x, out_dtype))
        z = x.new_empty((n, num_splits, h, w), dtype=compute_dtype(x))
        attention = torch.empty_like(z) if options.need_attention else None
        operator("folded_forward")(
            x, dw, dw_bias, *norm1 or _NO_NORM, pw, pw_bias, *norm2, y, z, attention, num_splits, options.relu_u,
            options.relu_z,
        )  # fmt: skip
        return y if out_dtype is None else y.to(out_dtype), attention


def moments(x: Tensor, group: Group | None = None) -> Tensor:
    """Mean, biased variance and count of every channel of x [N, C, H, W]: [3, C]."""
    with torch.no_grad():
        count, mean, m2 = _moments(x, group)
        return torch.stack((mean, m2 / count, count))


def _moments(x: Tensor, group: Group | None) -> Tensor:
    """Count, mean and M2 of every channel: [3, C]."""
    parts = x.new_empty((3, x.shape[1]), dtype=compute_dtype(x))
    operator("moments")(x, parts)
    if group is None:
        return parts
    return combine(group.gather(parts.unsqueeze(0)))
