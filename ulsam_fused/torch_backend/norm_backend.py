"""The operator between BatchNorms that use the statistics of this batch, in vectorised PyTorch.

With the symbols of torch_backend.py, M = N*H*W, mean and var over (N, H, W), all variances biased:

    r1 = 1 / sqrt(dw^2 var(x) + eps),   scale = gamma1 dw r1,   shift = beta1 - scale mean(x)
    r2 = 1 / sqrt(var(z) + eps),        gain = gamma2 r2,       offset = beta2 - gain mean(z)
    A = softmax of act_z(gain z + offset)

The biases of both convolutions cancel. Backward, with zhat = (z - mean(z)) r2, xc = x - mean(x), du = v s and < > the
mean over (N, H, W):

    dgamma2 = sum dl zhat,  dbeta2 = sum dl,  and dl is replaced by gain (dl - <dl> - zhat <dl zhat>)
    S1 = sum du,  S2 = sum du xc;  dbeta1 = S1,  dgamma1 = S2 dw r1,  ddw = gamma1 S2 eps r1^3
    dx = D (1 + A) + scale (du - S1 / M - xc (dw r1)^2 S2 / M)

dx waits without its last two terms until S1 and S2 are complete. Either norm may be absent: then (dw, beta1) are
scale and shift, or beta2 is b. Over several processes, moments and sums are exchanged through `group`.
"""

from typing import Any, cast

import torch
from torch import Tensor

from .batch_norm import Running, update_running
from .primitives import (
    compute_dtype,
    gradient_of_u,
    image_chunks,
    logits_gradient,
    per_channel,
    softmax,
    split,
    spread,
    window_logits,
    without_autocast,
    write_dx,
)


def norm_forward(
    x: Tensor,  # [N, C, H, W], any strides, not empty
    dw: Tensor,  # [C]
    gamma1: Tensor | None,  # [C]; None: dw and beta1 are scale and shift
    beta1: Tensor | None,  # [C]
    pw: Tensor,  # [C]
    gamma2: Tensor | None,  # [g]; None: beta2 is the bias b
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
    group: Any = None,  # distributed.Group
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """y, A, z [N,g,H,W], lse [N,g], first [5,C] (scale, mean, rstd, var, count), second [6,g] (gain, offset, ...).

    A is None and first empty where not needed; second is (1, b, 0, 1, 0, 0) without the second norm.
    """
    with torch.no_grad(), without_autocast(x):
        dtype = compute_dtype(x)
        x_, scale = x.to(dtype), dw.to(dtype)
        shift = None if beta1 is None else beta1.to(dtype)
        first = x_.new_empty(0)
        if gamma1 is not None:
            mean, var, count = _moments(x_, group)
            rstd = torch.rsqrt(scale.square() * var + eps1)
            if running1 is not None:
                update_running(running1, mean, var, count, scale)
            scale = gamma1.to(dtype) * scale * rstd
            shift = _shift(shift, scale, mean)
            first = torch.stack((scale, mean, rstd, var, count))
        z = window_logits(x_, scale, shift, pw.to(dtype), None, num_splits, relu_u)
        second = z.new_zeros(6, num_splits)
        if gamma2 is not None:
            mean, var, count = _moments(z, group)
            rstd = torch.rsqrt(var + eps2)
            if running2 is not None:
                update_running(running2, mean, var, count)
            gain = gamma2.to(dtype) * rstd
            offset = _shift(None if beta2 is None else beta2.to(dtype), gain, mean)
            second = torch.stack((gain, offset, mean, rstd, var, count))
        else:
            second[0] = second[3] = 1
            if beta2 is not None:
                second[1] = beta2
        logits = _normalised(z, second)
        if relu_z:
            logits.relu_()
        attention = softmax(logits)
        lse = logits.amax((2, 3)) - attention.amax((2, 3)).log_()
        y = torch.empty_like(x, dtype=dtype)
        x5 = split(x_, num_splits)
        torch.addcmul(x5, x5, spread(attention, x_), out=split(y, num_splits))
        return y.to(out_dtype or x.dtype), attention if need_attention else None, z, lse, first, second


def norm_backward(
    dy: Tensor | None,  # [N, C, H, W], any strides and float dtype; None: y had no gradient
    d_attention: Tensor | None,  # [N, g, H, W]
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    z: Tensor,  # and lse, first, second: what norm_forward gave
    lse: Tensor,
    first: Tensor,
    second: Tensor,
    num_splits: int,
    eps1: float,
    relu_u: bool,
    relu_z: bool,
    group: Any = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """dx (strides of empty_like(x)), ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2, each in the dtype of its own."""
    with torch.no_grad(), without_autocast(x):
        dtype = compute_dtype(x)
        x_, dw_, v = x.to(dtype), dw.to(dtype), pw.to(dtype)
        shift = None if beta1 is None else beta1.to(dtype)
        D = None if dy is None else dy.to(dtype)
        gain, _, z_mean, rstd2, _, count2 = (row[:, None, None] for row in second)
        zn = _normalised(z, second)
        A = softmax(zn.relu() if relu_z else zn)
        dz = logits_gradient(D, d_attention, x_, A, zn, num_splits, relu_z)
        sums = dz.sum((0, 2, 3))
        dgamma2 = None
        if gamma2 is not None:
            zhat = (z - z_mean) * rstd2
            dgamma2 = (dz * zhat).sum((0, 2, 3))
            totals = torch.stack((sums, dgamma2))
            means = (totals if group is None else group.sum(totals)).view(2, -1, 1, 1) / count2
            dz = gain * (dz - means[0] - zhat * means[1])
        elif not relu_z:
            sums = sums * 0  # the softmax does not see b

        x_mean = None
        scale = dw_
        if gamma1 is not None:
            scale, x_mean = first[0], first[1]
            shift = _shift(shift, scale, x_mean)
        dx = torch.empty_like(x, dtype=dtype)
        dlm, s_sum, sx = (x_.new_zeros(x.shape[1]) for _ in range(3))  # sums of dz m, s, s xc: [C]
        factor = per_channel(scale * v)
        for i in image_chunks(x):
            x_i = x_[i].contiguous(memory_format=torch.channels_last)
            dlm_i, s = gradient_of_u(x_i, scale, shift, dz[i].contiguous(memory_format=torch.channels_last), relu_u)
            dlm += dlm_i
            s_sum += s.sum((0, 2, 3))
            sx += (s * (x_i if x_mean is None else x_i - per_channel(x_mean))).sum((0, 2, 3))
            write_dx(dx[i], None if D is None else D[i], A[i], s, factor)

        dpw = dlm
        if not relu_u:  # m is still without scale and shift
            dpw = dlm * scale.abs() if shift is None else torch.addcmul(shift * s_sum, dlm, scale.abs())
        S1, S2 = v * s_sum, v * sx
        ddw, dgamma1, dbeta1 = S2, None, S1
        if x_mean is not None:
            rstd1, count1, gamma = first[2], first[4], cast(Tensor, gamma1).to(dtype)
            dgamma1 = S2 * dw_ * rstd1
            ddw = gamma * S2 * eps1 * rstd1**3
            both = torch.stack((S1, S2))
            both = both if group is None else group.sum(both)
            slope = per_channel(scale * (dw_ * rstd1).square() * both[1] / count1)
            constant = per_channel(scale * both[0] / count1 - slope.flatten() * x_mean)
            for i in image_chunks(x):
                dx[i].sub_(torch.addcmul(constant, slope, x_[i]))
        return (
            dx.to(x.dtype),
            ddw.to(dw.dtype),
            None if dgamma1 is None else dgamma1.to(cast(Tensor, gamma1).dtype),
            None if beta1 is None else dbeta1.to(beta1.dtype),
            dpw.to(pw.dtype),
            None if dgamma2 is None else dgamma2.to(cast(Tensor, gamma2).dtype),
            None if beta2 is None else sums.to(beta2.dtype),
        )


def moments(x: Tensor, group: Any = None) -> Tensor:
    """Mean, biased variance and count of every channel of x: [3, C]."""
    with torch.no_grad(), without_autocast(x):
        return torch.stack(_moments(x.to(compute_dtype(x)), group))


def _moments(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of every channel: [C] each; deviations are taken from the mean itself."""
    count = x.numel() // x.shape[1]
    mean = x.sum((0, 2, 3)) / max(count, 1)  # without images here, other processes may have some
    m2 = torch.zeros_like(mean)
    for i in image_chunks(x):
        m2 += (x[i] - per_channel(mean)).square_().sum((0, 2, 3))
    counts = torch.full_like(mean, count)
    if group is not None:
        return combine(group.gather(torch.stack((counts, mean, m2)).unsqueeze(0)))
    return mean, m2 / count, counts


def combine(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of all parts [P, 3, C] together; a part is (count, mean, squared deviations)."""
    counts, means, m2s = parts.unbind(1)
    count = counts.sum(0)
    mean = means[0] + (counts * (means - means[0])).sum(0) / count
    m2 = m2s.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, m2 / count, count


def _shift(beta: Tensor | None, gain: Tensor, mean: Tensor) -> Tensor:
    """beta - gain mean."""
    return -gain * mean if beta is None else torch.addcmul(beta, gain, mean, value=-1)


def _normalised(z: Tensor, second: Tensor) -> Tensor:
    """gain z + offset."""
    return torch.addcmul(second[1][:, None, None], second[0][:, None, None], z)
