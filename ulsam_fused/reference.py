"""The operator in eager PyTorch, one subspace after the other: what every other implementation is checked against.

Nothing here is fused, cached or clever, and nothing of the package is imported: the file can be read, copied and
trusted alone. Source: Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional
Neural Networks", WACV 2020, https://arxiv.org/abs/2006.15102.

For an image and a subspace of G = C / num_splits channels, p and q being pixels and W(p) the 3x3 window around p
(stride 1; the padding never wins):

    u[c,q] = act_u(scale[c] * x[c,q] + shift[c])      depthwise 1x1 convolution
    m[c,p] = max over q in W(p) of u[c,q]             max-pool
    z[p]   = sum over c of v[c] * m[c,p] + b          pointwise convolution to one channel
    A      = softmax over all H*W pixels of act_z(z)  one attention map
    y[c,p] = (1 + A[p]) * x[c,p]                      reweight and add
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def subspace_attention(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    num_splits: int,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    *,
    activation: str | None = None,
    return_attention: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Subspace attention in eager PyTorch; arguments and results as `ulsam_fused.subspace_attention`.

    Each step is computed in the type that PyTorch's promotion gives it; only the softmax is at least float32.
    """
    relu = activation == "relu"
    y, attention = general_form(
        x, dw_weight, dw_bias, pw_weight, pw_bias, num_splits, relu_u=relu, relu_z=relu, out_dtype=out_dtype
    )
    return (y, attention) if return_attention else y


def general_form(
    x: Tensor,  # [N, C, H, W]
    scale: Tensor,  # [C]
    shift: Tensor | None,  # [C]
    v: Tensor,  # [C]
    b: Tensor | None,  # [num_splits]
    num_splits: int,
    *,
    relu_u: bool = False,
    relu_z: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The general form above, each activation the identity or ReLU; returns y [N,C,H,W] and A [N,num_splits,H,W]."""
    size = x.shape[1] // num_splits  # G
    ys, maps = [], []
    for k in range(num_splits):
        channels = slice(k * size, (k + 1) * size)
        x_k = x[:, channels]
        u = scale[channels].view(1, -1, 1, 1) * x_k
        if shift is not None:
            u = u + shift[channels].view(1, -1, 1, 1)
        if relu_u:
            u = u.relu()
        m = F.max_pool2d(u, kernel_size=3, stride=1, padding=1)
        z = (v[channels].view(1, -1, 1, 1) * m).sum(dim=1, keepdim=True)
        if b is not None:
            z = z + b[k]
        if relu_z:
            z = z.relu()
        a = z.flatten(2).softmax(dim=-1, dtype=torch.promote_types(z.dtype, torch.float32)).view_as(z)
        ys.append((1 + a) * x_k)
        maps.append(a)
    return torch.cat(ys, dim=1).to(out_dtype or x.dtype), torch.cat(maps, dim=1)
