"""What the PyTorch backend's forward and backward share: pooling, routing, sums over channels, chunks of the batch.

Forward. max_pool2d on NCHW is nearly all the time that the eager operator takes, so the maximum is taken by four
flat `torch.maximum` calls: in a buffer whose rows and maps are separated by one pixel of -inf, the neighbours of
every pixel lie at the same two distances, 1 and W + 1 pixels, in NCHW as in channels_last. shift and act_u do not
decrease, so they commute with the maximum and are applied once, after it.

Backward. The winner of a window comes from max_pool2d itself in channels_last, where it is fast: its order of ties
(first maximum, row by row) and its rule for NaN hold by construction. It pools kappa x with kappa = sign(scale): the
order of scale x + shift without its rounding, so two x that differ never tie unless scale is 0.
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


def window_logits(
    x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, num_splits: int, relu_u: bool
) -> Tensor:
    """z [N, num_splits, H, W]."""
    _, C, H, W = x.shape
    channels_last = _is_channels_last(x)
    step = C if channels_last else 1  # between neighbours in a row, in elements
    row = (W + 1) * step  # between neighbours in a column
    chunks = image_chunks(x)
    n = chunks[0].stop if chunks else 0
    size = n * C * (H + 1) * (W + 1)
    # one pixel of -inf before every row and one row of it before every map; the last map needs them behind it too
    u = x.new_full((size + row + step,), -torch.inf)
    t, m = torch.empty_like(u), torch.empty_like(u)
    u4, m4 = (_grid(flat[:size], (n, C, H + 1, W + 1), channels_last) for flat in (u, m))
    scale4 = per_channel(scale)
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
                m4.add_(per_channel(shift))
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


def gradient_of_u(x: Tensor, scale: Tensor, shift: Tensor | None, dl: Tensor, relu_u: bool) -> tuple[Tensor, Tensor]:
    """sum of dl m [C], with act_u a ReLU else without scale and shift, and s [n,C,H,W]; x and dl are channels_last."""
    kx = x * per_channel(scale.sign())
    m, winner = torch.ops.aten.max_pool2d_with_indices(kx, *_WINDOW)
    if relu_u:
        size = per_channel(scale.abs())
        m = m.mul_(size) if shift is None else torch.addcmul(per_channel(shift), m, size, out=m)
        m.relu_()
    e = torch.empty_like(m)  # dl in every channel: one broadcast copy costs less than each broadcast after it
    split(e, dl.shape[1]).copy_(dl.unsqueeze(2))
    dlm = (m * e).sum((0, 2, 3))
    if relu_u:
        torch.ops.aten.threshold_backward.grad_input(e, m, 0, grad_input=e)
    if e.is_cuda:  # PyTorch's own kernel adds atomically there
        return dlm, _route_in_order(e, winner)
    return dlm, torch.ops.aten.max_pool2d_with_indices_backward(e, kx, *_WINDOW, [1, 1], False, winner)


def write_dx(dx: Tensor, D: Tensor | None, A: Tensor, s: Tensor, factor: Tensor) -> None:
    """dx = D (1 + A) + factor s of some images; dx, D, s [n, C, H, W], A [n, num_splits, H, W], factor [C, 1, 1]."""
    if D is None:
        torch.mul(s, factor, out=dx)
        return
    num_splits = A.shape[1]
    D5 = split(D, num_splits)
    torch.addcmul(D5, D5, spread(A, dx), out=split(dx, num_splits))
    dx.addcmul_(s, factor)


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


def logits_gradient(
    D: Tensor | None, d_attention: Tensor | None, x: Tensor, A: Tensor, z: Tensor, num_splits: int, relu_z: bool
) -> Tensor:
    """dl [N, num_splits, H, W]."""
    dA = torch.zeros_like(A)
    if D is not None:
        for i in image_chunks(x):
            torch.sum(split(D[i] * x[i], num_splits), 2, out=dA[i])
    if d_attention is not None:
        dA = dA + d_attention
    dl = A * (dA - (A * dA).sum((2, 3), keepdim=True))
    return torch.ops.aten.threshold_backward(dl, z, 0) if relu_z else dl


def softmax(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(-1).view_as(logits)


def _sum_channels(m: Tensor, v: Tensor, num_splits: int, channels_last: bool) -> Tensor:
    """sum over c of v[c] m[c,p]: [n, num_splits, H, W] of a dense m [n, C, H, W]."""
    n, C, H, W = m.shape
    if m.is_cuda:  # a CUDA matrix product may round to TF32
        return split(m * per_channel(v), num_splits).sum(2)
    # products of at most 16 channels: a longer one adds up one after the other, and its error was twice the eager sum's
    size = math.gcd(C // num_splits, 16)
    row_v = v.reshape(-1, 1, size)
    if channels_last:
        rows = m.permute(0, 2, 3, 1).view(n * H * W, -1, size)
        parts = torch.bmm(row_v, rows.permute(1, 2, 0)).view(num_splits, -1, n, H, W)
        return parts.sum(1).transpose(0, 1)
    return torch.matmul(row_v, m.view(n, -1, size, H * W)).view(n, num_splits, -1, H, W).sum(2)


def spread(attention: Tensor, x: Tensor) -> Tensor:
    """A as [N, num_splits, 1, H, W] in the memory order of x, which halves the time of a product with few channels."""
    return (attention.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else attention).unsqueeze(2)


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


def split(t: Tensor, num_splits: int) -> Tensor:
    """[N, C, H, W] as [N, num_splits, G, H, W], a view whatever the strides."""
    N, C, H, W = t.shape
    return t.view(N, num_splits, C // num_splits, H, W)


def _grid(flat: Tensor, shape: tuple[int, int, int, int], channels_last: bool) -> Tensor:
    """A dense buffer seen as [n, C, H, W]."""
    n, C, H, W = shape
    return flat.view(n, H, W, C).permute(0, 3, 1, 2) if channels_last else flat.view(shape)


def per_channel(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1)


def image_chunks(x: Tensor) -> list[slice]:
    """The batch in nearly equal runs of images, of about CHUNK elements each."""
    N = x.shape[0]
    n = -(-N // max(1, -(-x.numel() // CHUNK)))
    return [slice(i, min(i + n, N)) for i in range(0, N, max(n, 1))]


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if autocast else nullcontext()
