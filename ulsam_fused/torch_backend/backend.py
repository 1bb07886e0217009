"""The operator in vectorised PyTorch, all subspaces at once: the default on a CPU, correct on every device.

With the symbols of reference.py, D = dy and sums over q running over the pixels of one image and subspace:

    dA[p] = sum_c D[c,p] x[c,p] (+ the gradient that arrives at A itself)
    dl[p] = A[p] (dA[p] - sum_q A[q] dA[q]),  zero where act_z is a ReLU and z[p] <= 0
    s[c,q] = sum of dl[p] over the windows p whose maximum is at q,  zero where act_u is a ReLU and u[c,q] <= 0
    du = v s;  dscale[c] = v[c] sum s x;  dshift[c] = v[c] sum s;  dv[c] = sum dl m;  db = sum dl
    dx[c,q] = D[c,q] (1 + A[q]) + scale[c] v[c] s[c,q]

Everything is computed in float32, in float64 for float64 x. Sums run in an order that depends on the shapes only.
NaN and infinity reach what they reach in reference.py, but for x + A x being NaN where x is infinite and A is 0.
"""

import torch
from torch import Tensor

from ..kernels.contract import Forward, Gradients, Inputs, Options
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


def forward(inputs: Inputs, options: Options) -> Forward:
    """A and lse are None unless needed."""
    x, scale, shift, v, b = inputs
    num_splits = options.num_splits
    with torch.no_grad(), without_autocast(x):
        dtype = compute_dtype(x)
        y, x_ = torch.empty_like(x, dtype=dtype), x.to(dtype)
        shift, b = (t if t is None else t.to(dtype) for t in (shift, b))
        z = window_logits(x_, scale.to(dtype), shift, v.to(dtype), b, num_splits, options.relu_u)
        logits = z.relu() if options.relu_z else z
        attention = softmax(logits)
        # the largest probability is exp(max - lse)
        lse = logits.amax((2, 3)) - attention.amax((2, 3)).log_() if options.need_lse else None
        x5 = split(x_, num_splits)
        torch.addcmul(x5, x5, spread(attention, x_), out=split(y, num_splits))
        return Forward(y.to(options.out_dtype or x.dtype), attention if options.need_attention else None, z, lse)


def backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: Inputs,
    z: Tensor,
    lse: Tensor,
    options: Options,
) -> Gradients:
    """db is exactly 0 (or NaN) where act_z is the identity. lse is not needed here: z gives A to the last bit."""
    x, scale, shift, v, b = inputs
    num_splits, relu_u, relu_z = options.num_splits, options.relu_u, options.relu_z
    with torch.no_grad(), without_autocast(x):
        dtype = compute_dtype(x)
        x_, scale_, v_ = x.to(dtype), scale.to(dtype), v.to(dtype)
        shift_ = None if shift is None else shift.to(dtype)
        D = None if dy is None else dy.to(dtype)
        A = softmax(z.relu() if relu_z else z)  # exp(act_z(z) - lse) would carry the rounding of lse into every pixel
        dl = logits_gradient(D, d_attention, x_, A, z, num_splits, relu_z)
        sum_dl = dl.sum((0, 2, 3))
        if not relu_z:
            sum_dl *= 0  # the softmax does not see b: what the sum leaves is rounding, or NaN

        scale_v = per_channel(scale_ * v_)
        dx = torch.empty_like(x, dtype=dtype)
        dlm, sx, s_sum = (x_.new_zeros(x.shape[1]) for _ in range(3))  # sums over n and p of dl m, s x, s: [C]
        for i in image_chunks(x):
            x_i = x_[i].contiguous(memory_format=torch.channels_last)
            dlm_i, s = gradient_of_u(x_i, scale_, shift_, dl[i].contiguous(memory_format=torch.channels_last), relu_u)
            dlm += dlm_i
            sx += (s * x_i).sum((0, 2, 3))
            if relu_u and shift_ is not None:
                s_sum += s.sum((0, 2, 3))
            write_dx(dx[i], None if D is None else D[i], A[i], s, scale_v)

        dv, dshift, db = dlm, None, None
        if not relu_u:  # m is still without scale and shift, and every dl reaches a u
            s_sum = sum_dl.repeat_interleave(x.shape[1] // num_splits)
            dv = dlm * scale_.abs() if shift_ is None else torch.addcmul(shift_ * s_sum, dlm, scale_.abs())
        if shift is not None:
            dshift = (v_ * s_sum).to(shift.dtype)
        if b is not None:
            db = sum_dl.to(b.dtype)
        return Gradients(dx.to(x.dtype), (v_ * sx).to(scale.dtype), dshift, dv.to(v.dtype), db)
