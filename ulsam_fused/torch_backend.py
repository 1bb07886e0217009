"""The operator in vectorised PyTorch, all subspaces at once: the default on a CPU, correct on every device.

With the symbols of reference.py, D = dy and sums over q running over the pixels of one image and subspace:

    dA[p] = sum_c D[c,p] x[c,p] (+ the gradient that arrives at A itself)
    dl[p] = A[p] (dA[p] - sum_q A[q] dA[q]),  zero where act_z is a ReLU and z[p] <= 0
    s[c,q] = sum of dl[p] over the windows p whose maximum is at q,  zero where act_u is a ReLU and u[c,q] <= 0
    du = v s;  dscale[c] = v[c] sum s x;  dshift[c] = v[c] sum s;  dv[c] = sum dl m;  db = sum dl
    dx[c,q] = D[c,q] (1 + A[q]) + scale[c] v[c] s[c,q]

Forward. max_pool2d on NCHW is nearly all the time that the eager operator takes, so the maximum is taken by four
flat `torch.maximum` calls: in a buffer whose rows and maps are separated by one pixel of -inf, the neighbours of
every pixel lie at the same two distances, 1 and W + 1 pixels, in NCHW as in channels_last. shift and act_u do not
decrease, so they commute with the maximum and are applied once, after it.

Backward. The winner of a window comes from max_pool2d itself in channels_last, where it is fast: its order of ties
(first maximum, row by row) and its rule for NaN hold by construction. It pools kappa x with kappa = sign(scale): the
order of scale x + shift without its rounding, so two x that differ never tie unless scale is 0.

Everything is computed in float32, in float64 for float64 x. Sums run in an order that depends on the shapes only.
NaN and infinity reach what they reach in reference.py, but for x + A x being NaN where x is infinite and A is 0.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

# The batch is cut into chunks of images with at most about so many elements, so that scratch buffers stay in L2 and are
# recycled. Measured on two cores with 2 MiB of L2 each, float32 8x512x14x14, both ReLUs, for 2^16, 17, 18, 19, 20:
# forward 1.40, 1.42, 1.30, 1.46, 1.73 ms; training step, from 2^17 on, 7.5, 7.4, 9.6, 9.8 ms.
CHUNK = 1 << 18

_WINDOW = ([3, 3], [1, 1], [1, 1])  # kernel, stride, padding


def forward(
    x: Tensor,  # [N, C, H, W], any strides
    scale: Tensor,  # [C]
    shift: Tensor | None,  # [C]
    v: Tensor,  # [C]
    b: Tensor | None,  # [num_splits]
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    need_lse: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (strides of empty_like(x)), A and z before act_z [N,num_splits,H,W], lse [N,num_splits]; A, lse if needed."""
    with torch.no_grad(), _without_autocast(x):
        dtype = _compute_dtype(x)
        y, x_ = torch.empty_like(x, dtype=dtype), x.to(dtype)
        shift, b = (t if t is None else t.to(dtype) for t in (shift, b))
        z = _logits(x_, scale.to(dtype), shift, v.to(dtype), b, num_splits, relu_u)
        logits = z.relu() if relu_z else z
        attention = _softmax(logits)
        # the largest probability is exp(max - lse)
        lse = logits.amax((2, 3)) - attention.amax((2, 3)).log_() if need_lse else z.new_empty(0)
        x5 = _split(x_, num_splits)
        torch.addcmul(x5, x5, _spread(attention, x_), out=_split(y, num_splits))
        return y.to(out_dtype or x.dtype), attention if need_attention else z.new_empty(0), z, lse


def backward(
    dy: Tensor | None,  # [N, C, H, W], any strides and float dtype; None: y had no gradient
    d_attention: Tensor | None,  # [N, num_splits, H, W]
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,  # [N, num_splits, H, W]
    lse: Tensor,  # [N, num_splits]
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """dx (strides of empty_like(x)), dscale, dshift, dv, db, each in the dtype of what it is the gradient of.

    db is exactly 0 (or NaN) where act_z is the identity. lse is not needed here: z gives A to the last bit.
    """
    with torch.no_grad(), _without_autocast(x):
        dtype = _compute_dtype(x)
        x_, scale_, v_ = x.to(dtype), scale.to(dtype), v.to(dtype)
        shift_ = None if shift is None else shift.to(dtype)
        D = None if dy is None else dy.to(dtype)
        A = _softmax(z.relu() if relu_z else z)  # exp(act_z(z) - lse) would carry the rounding of lse into every pixel
        dl = _logits_gradient(D, d_attention, x_, A, z, num_splits, relu_z)
        sum_dl = dl.sum((0, 2, 3))
        if not relu_z:
            sum_dl *= 0  # the softmax does not see b: what the sum leaves is rounding, or NaN

        scale_v = _per_channel(scale_ * v_)
        dx = torch.empty_like(x, dtype=dtype)
        dlm, sx, s_sum = (x_.new_zeros(x.shape[1]) for _ in range(3))  # sums over n and p of dl m, s x, s: [C]
        for i in _chunks(x):
            x_i = x_[i].contiguous(memory_format=torch.channels_last)
            dlm_i, s = _gradient_of_u(x_i, scale_, shift_, dl[i].contiguous(memory_format=torch.channels_last), relu_u)
            dlm += dlm_i
            sx += (s * x_i).sum((0, 2, 3))
            if relu_u and shift_ is not None:
                s_sum += s.sum((0, 2, 3))
            if D is None:
                torch.mul(s, scale_v, out=dx[i])
            else:
                D5 = _split(D[i], num_splits)
                torch.addcmul(D5, D5, _spread(A[i], dx), out=_split(dx[i], num_splits))
                dx[i].addcmul_(s, scale_v)

        dv, dshift, db = dlm, None, None
        if not relu_u:  # m is still without scale and shift, and every dl reaches a u
            s_sum = sum_dl.repeat_interleave(x.shape[1] // num_splits)
            dv = dlm * scale_.abs() if shift_ is None else torch.addcmul(shift_ * s_sum, dlm, scale_.abs())
        if shift is not None:
            dshift = (v_ * s_sum).to(shift.dtype)
        if b is not None:
            db = sum_dl.to(b.dtype)
        return dx.to(x.dtype), (v_ * sx).to(scale.dtype), dshift, dv.to(v.dtype), db


def _logits(
    x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, num_splits: int, relu_u: bool
) -> Tensor:
    """z [N, num_splits, H, W]."""
    _, C, H, W = x.shape
    channels_last = _is_channels_last(x)
    step = C if channels_last else 1  # between neighbours in a row, in elements
    row = (W + 1) * step  # between neighbours in a column
    chunks = _chunks(x)
    n = chunks[0].stop if chunks else 0
    size = n * C * (H + 1) * (W + 1)
    # one pixel of -inf before every row and one row of it before every map; the last map needs them behind it too
    u = x.new_full((size + row + step,), -torch.inf)
    t, m = torch.empty_like(u), torch.empty_like(u)
    u4, m4 = (_grid(flat[:size], (n, C, H + 1, W + 1), channels_last) for flat in (u, m))
    scale4 = _per_channel(scale)
    if shift is not None and not relu_u:  # sum v (m + shift) = sum v m + a constant
        constant = (v * shift).view(num_splits, -1).sum(1)
        b = constant if b is None else b + constant
    z = x.new_empty(x.shape[0], num_splits, H, W)
    for i in chunks:
        x_i = x[i]
        torch.mul(x_i, scale4, out=u4[: x_i.shape[0], :, 1:, 1:])
        _window_maximum(u, t, m, step, row)
        if relu_u:
            if shift is not None:
                m4.add_(_per_channel(shift))
            m.relu_()
        z[i] = _sum_channels(m4, v, num_splits, channels_last)[: x_i.shape[0], :, 1:, 1:]
    return z if b is None else z.add_(b[:, None, None])


def _window_maximum(u: Tensor, t: Tensor, m: Tensor, step: int, row: int) -> None:
    """m[i] = max of u over i, i ± step and each of them ± row, for every i that has all nine; t is scratch."""
    end = u.numel() - step
    torch.maximum(u[:end], u[step:], out=t[:end])
    torch.maximum(t[: end - step], t[step:end], out=m[step:end])
    torch.maximum(m[step : end - row], m[step + row : end], out=t[step : end - row])
    torch.maximum(t[step : end - 2 * row], t[step + row : end - row], out=m[step + row : end - row])


def _gradient_of_u(x: Tensor, scale: Tensor, shift: Tensor | None, dl: Tensor, relu_u: bool) -> tuple[Tensor, Tensor]:
    """sum of dl m [C], with act_u a ReLU else without scale and shift, and s [n,C,H,W]; x and dl are channels_last."""
    kx = x * _per_channel(scale.sign())
    m, winner = torch.ops.aten.max_pool2d_with_indices(kx, *_WINDOW)
    if relu_u:
        size = _per_channel(scale.abs())
        m = m.mul_(size) if shift is None else torch.addcmul(_per_channel(shift), m, size, out=m)
        m.relu_()
    e = torch.empty_like(m)  # dl in every channel: one broadcast copy costs less than each broadcast after it
    _split(e, dl.shape[1]).copy_(dl.unsqueeze(2))
    dlm = (m * e).sum((0, 2, 3))
    if relu_u:
        torch.ops.aten.threshold_backward.grad_input(e, m, 0, grad_input=e)
    if e.is_cuda:  # PyTorch's own kernel adds atomically there
        return dlm, _route_in_order(e, winner)
    return dlm, torch.ops.aten.max_pool2d_with_indices_backward(e, kx, *_WINDOW, [1, 1], False, winner)


def _route_in_order(e: Tensor, winner: Tensor) -> Tensor:
    """Every pixel's sum of e over its nine windows that it won, always in the same order; winner: pixel of the map."""
    H, W = e.shape[2:]
    own = torch.arange(H * W, device=e.device).view(H, W)
    s = torch.zeros_like(e)
    e, winner = F.pad(e, (1, 1, 1, 1)), F.pad(winner, (1, 1, 1, 1), value=-1)
    for k in range(9):
        window = (..., slice(k // 3, k // 3 + H), slice(k % 3, k % 3 + W))
        s += e[window].masked_fill(winner[window] != own, 0)
    return s


def _logits_gradient(
    D: Tensor | None, d_attention: Tensor | None, x: Tensor, A: Tensor, z: Tensor, num_splits: int, relu_z: bool
) -> Tensor:
    """dl [N, num_splits, H, W]."""
    dA = torch.zeros_like(A)
    if D is not None:
        for i in _chunks(x):
            torch.sum(_split(D[i] * x[i], num_splits), 2, out=dA[i])
    if d_attention is not None:
        dA = dA + d_attention
    dl = A * (dA - (A * dA).sum((2, 3), keepdim=True))
    return torch.ops.aten.threshold_backward(dl, z, 0) if relu_z else dl


def _softmax(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(-1).view_as(logits)


def _sum_channels(m: Tensor, v: Tensor, num_splits: int, channels_last: bool) -> Tensor:
    """sum over c of v[c] m[c,p]: [n, num_splits, H, W] of a dense m [n, C, H, W]."""
    n, C, H, W = m.shape
    if m.is_cuda:  # a CUDA matrix product may round to TF32
        return _split(m * _per_channel(v), num_splits).sum(2)
    # products of at most 16 channels: a longer one adds up one after the other, and its error was twice the eager sum's
    size = math.gcd(C // num_splits, 16)
    row_v = v.reshape(-1, 1, size)
    if channels_last:
        rows = m.permute(0, 2, 3, 1).view(n * H * W, -1, size)
        parts = torch.bmm(row_v, rows.permute(1, 2, 0)).view(num_splits, -1, n, H, W)
        return parts.sum(1).transpose(0, 1)
    return torch.matmul(row_v, m.view(n, -1, size, H * W)).view(n, num_splits, -1, H, W).sum(2)


def _spread(attention: Tensor, x: Tensor) -> Tensor:
    """A as [N, num_splits, 1, H, W] in the memory order of x, which halves the time of a product with few channels."""
    return (attention.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else attention).unsqueeze(2)


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


def _split(t: Tensor, num_splits: int) -> Tensor:
    """[N, C, H, W] as [N, num_splits, G, H, W], a view whatever the strides."""
    N, C, H, W = t.shape
    return t.view(N, num_splits, C // num_splits, H, W)


def _grid(flat: Tensor, shape: tuple[int, int, int, int], channels_last: bool) -> Tensor:
    """A dense buffer seen as [n, C, H, W]."""
    n, C, H, W = shape
    return flat.view(n, H, W, C).permute(0, 3, 1, 2) if channels_last else flat.view(shape)


def _per_channel(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1)


def _chunks(x: Tensor) -> list[slice]:
    """The batch in nearly equal runs of images, of about CHUNK elements each."""
    N = x.shape[0]
    n = -(-N // max(1, -(-x.numel() // CHUNK)))
    return [slice(i, min(i + n, N)) for i in range(0, N, max(n, 1))]


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
