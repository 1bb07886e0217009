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

from typing import cast

import torch
from torch import Tensor

from ..kernels.batch_norm import combine, fold, update_running, without_norm
from ..kernels.contract import (
    Exchange,
    FixedNorm,
    Group,
    Inputs,
    InputStatistics,
    LogitStatistics,
    NormForward,
    NormGradients,
    NormInputs,
    NormSaved,
    Options,
)
from . import backend
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


def norm_forward(inputs: NormInputs, options: Options, exchange: Exchange) -> NormForward:
    """A is None unless needed, and first is empty without the depthwise norm."""
    num_splits, relu_u = options.num_splits, options.relu_u
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    running1, running2, group = exchange
    with torch.no_grad(), without_autocast(x):
        dtype = compute_dtype(x)
        x_, scale = x.to(dtype), dw.to(dtype)
        shift = None if beta1 is None else beta1.to(dtype)
        first = x_.new_empty(0)
        if gamma1 is not None:
            mean, var, count = _moments(x_, group)
            rstd = torch.rsqrt(scale.square() * var + options.eps1)
            if running1 is not None:
                update_running(running1, mean, var, count, scale)
            scale = gamma1.to(dtype) * scale * rstd
            shift = _shift(shift, scale, mean)
            first = torch.stack(InputStatistics(scale, mean, rstd, var, count))
        z = window_logits(x_, scale, shift, pw.to(dtype), None, num_splits, relu_u)
        if gamma2 is None:
            second = without_norm(z, beta2)
        else:
            mean, var, count = _moments(z, group)
            rstd = torch.rsqrt(var + options.eps2)
            if running2 is not None:
                update_running(running2, mean, var, count)
            gain = gamma2.to(dtype) * rstd
            offset = _shift(None if beta2 is None else beta2.to(dtype), gain, mean)
            second = torch.stack(LogitStatistics(gain, offset, mean, rstd, var, count))
        logits = _normalised(z, LogitStatistics(*second))
        if options.relu_z:
            logits.relu_()
        attention = softmax(logits)
        lse = logits.amax((2, 3)) - attention.amax((2, 3)).log_()
        y = torch.empty_like(x, dtype=dtype)
        x5 = split(x_, num_splits)
        torch.addcmul(x5, x5, spread(attention, x_), out=split(y, num_splits))
        return NormForward(
            y.to(options.out_dtype or x.dtype), attention if options.need_attention else None, z, lse, first, second
        )


def norm_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: NormInputs,
    saved: NormSaved,
    options: Options,
    group: Group | None,
) -> NormGradients:
    """Each in the type of its own; dx with the strides of empty_like(x)."""
    num_splits, relu_u, relu_z = options.num_splits, options.relu_u, options.relu_z
    x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
    z, of_z = saved.z, LogitStatistics(*saved.second)
    with torch.no_grad(), without_autocast(x):
        dtype = compute_dtype(x)
        x_, dw_, v = x.to(dtype), dw.to(dtype), pw.to(dtype)
        shift = None if beta1 is None else beta1.to(dtype)
        D = None if dy is None else dy.to(dtype)
        zn = _normalised(z, of_z)
        A = softmax(zn.relu() if relu_z else zn)
        dz = logits_gradient(D, d_attention, x_, A, zn, num_splits, relu_z)
        sums = dz.sum((0, 2, 3))
        dgamma2 = None
        if gamma2 is not None:
            zhat = (z - per_channel(of_z.mean)) * per_channel(of_z.rstd)
            dgamma2 = (dz * zhat).sum((0, 2, 3))
            totals = torch.stack((sums, dgamma2))
            means = (totals if group is None else group.sum(totals)) / of_z.values
            mean_dz, mean_dz_zhat = map(per_channel, means)
            dz = per_channel(of_z.gain) * (dz - mean_dz - zhat * mean_dz_zhat)
        elif not relu_z:
            sums = sums * 0  # the softmax does not see b

        of_x = None if gamma1 is None else InputStatistics(*saved.first)
        scale = dw_ if of_x is None else of_x.scale
        if of_x is not None:
            shift = _shift(shift, scale, of_x.mean)
        dx = torch.empty_like(x, dtype=dtype)
        dlm, s_sum, sx = (x_.new_zeros(x.shape[1]) for _ in range(3))  # sums of dz m, s, s xc: [C]
        factor = per_channel(scale * v)
        for i in image_chunks(x):
            x_i = x_[i].contiguous(memory_format=torch.channels_last)
            dlm_i, s = gradient_of_u(x_i, scale, shift, dz[i].contiguous(memory_format=torch.channels_last), relu_u)
            dlm += dlm_i
            s_sum += s.sum((0, 2, 3))
            sx += (s * (x_i if of_x is None else x_i - per_channel(of_x.mean))).sum((0, 2, 3))
            write_dx(dx[i], None if D is None else D[i], A[i], s, factor)

        dpw = dlm
        if not relu_u:  # m is still without scale and shift
            dpw = dlm * scale.abs() if shift is None else torch.addcmul(shift * s_sum, dlm, scale.abs())
        S1, S2 = v * s_sum, v * sx
        ddw, dgamma1, dbeta1 = S2, None, S1
        if of_x is not None:
            dgamma1 = S2 * dw_ * of_x.rstd
            ddw = cast(Tensor, gamma1).to(dtype) * S2 * options.eps1 * of_x.rstd**3
            both = torch.stack((S1, S2))
            all_S1, all_S2 = both if group is None else group.sum(both)
            slope = per_channel(scale * (dw_ * of_x.rstd).square() * all_S2 / of_x.values)
            constant = per_channel(scale * all_S1 / of_x.values - slope.flatten() * of_x.mean)
            for i in image_chunks(x):
                dx[i].sub_(torch.addcmul(constant, slope, x_[i]))
        return NormGradients(
            dx.to(x.dtype),
            ddw.to(dw.dtype),
            None if dgamma1 is None else dgamma1.to(cast(Tensor, gamma1).dtype),
            None if beta1 is None else dbeta1.to(beta1.dtype),
            dpw.to(pw.dtype),
            None if dgamma2 is None else dgamma2.to(cast(Tensor, gamma2).dtype),
            None if beta2 is None else sums.to(beta2.dtype),
        )


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
    v, b = fold(pw, pw_bias, norm2, repeat=x.shape[1] // options.num_splits)
    scale, shift = dw, dw_bias
    if scale is None:  # what is pooled has no activation
        scale, options = torch.ones_like(v), options._replace(relu_u=False)
    elif norm1 is not None:
        scale, shift = fold(scale, dw_bias, norm1)
    found = backend.forward(Inputs(x, scale, shift, v, b), options)
    return found.y, found.attention


def moments(x: Tensor, group: Group | None = None) -> Tensor:
    """Mean, biased variance and count of every channel of x: [3, C]."""
    with torch.no_grad(), without_autocast(x):
        return torch.stack(_moments(x.to(compute_dtype(x)), group))


def _moments(x: Tensor, group: Group | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of every channel: [C] each; deviations are taken from the mean itself."""
    count = x.numel() // x.shape[1]
    mean = x.sum((0, 2, 3)) / max(count, 1)  # without images here, other processes may have some
    m2 = torch.zeros_like(mean)
    for i in image_chunks(x):
        m2 += (x[i] - per_channel(mean)).square_().sum((0, 2, 3))
    counts = torch.full_like(mean, count)
    if group is not None:
        counts, mean, m2 = combine(group.gather(torch.stack((counts, mean, m2)).unsqueeze(0)))
    return mean, m2 / counts, counts


def _shift(beta: Tensor | None, gain: Tensor, mean: Tensor) -> Tensor:
    """beta - gain mean."""
    return -gain * mean if beta is None else torch.addcmul(beta, gain, mean, value=-1)


def _normalised(z: Tensor, of_z: LogitStatistics) -> Tensor:
    """gain z + offset."""
    return torch.addcmul(per_channel(of_z.offset), per_channel(of_z.gain), z)
