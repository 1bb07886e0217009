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

The authors' published code has a BatchNorm before each activation (`batch_norm_form`, and as modules `SubSpace` and
`ULSAM`: https://github.com/Nandan91/ULSAM).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    return batch_norm_form(
        x, scale, shift, None, v, b, None, num_splits, relu_u=relu_u, relu_z=relu_z, out_dtype=out_dtype
    )


class BatchNorm(NamedTuple):
    """What `torch.nn.functional.batch_norm` needs to know; C is its number of channels."""

    weight: Tensor  # gamma [C]
    bias: Tensor  # beta [C]
    running_mean: Tensor | None  # [C], updated in place where batch statistics are used
    running_var: Tensor | None  # [C]
    batch: bool  # statistics of this batch, not the running ones
    momentum: float  # weight of this batch in the running statistics
    eps: float

    def apply(self, t: Tensor, channels: slice) -> Tensor:
        """Normalises t [N, ., H, W], which holds these channels."""
        weight, bias, mean, var = (p if p is None else p[channels] for p in self[:4])
        return F.batch_norm(t, mean, var, weight, bias, self.batch, self.momentum, self.eps)


def batch_norm_form(
    x: Tensor,  # [N, C, H, W]
    dw_weight: Tensor,  # [C]
    dw_bias: Tensor | None,  # [C]
    dw_norm: BatchNorm | None,  # of C channels
    pw_weight: Tensor,  # [C]
    pw_bias: Tensor | None,  # [num_splits]
    pw_norm: BatchNorm | None,  # of num_splits channels
    num_splits: int,
    *,
    relu_u: bool = True,
    relu_z: bool = True,
    pool_input: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The authors' form; returns y [N, C, H, W] and A [N, num_splits, H, W].

    The general form with u and z normalised before their activations. With `pool_input` x itself is pooled, as in the
    authors' code before October 2020: u changes nothing but the running statistics of its norm.
    """
    size = x.shape[1] // num_splits  # G
    ys, maps = [], []
    for k in range(num_splits):
        channels = slice(k * size, (k + 1) * size)
        x_k = x[:, channels]
        u = dw_weight[channels].view(1, -1, 1, 1) * x_k
        if dw_bias is not None:
            u = u + dw_bias[channels].view(1, -1, 1, 1)
        if dw_norm is not None:
            u = dw_norm.apply(u, channels)
        if relu_u:
            u = u.relu()
        m = F.max_pool2d(x_k if pool_input else u, kernel_size=3, stride=1, padding=1)
        z = (pw_weight[channels].view(1, -1, 1, 1) * m).sum(dim=1, keepdim=True)
        if pw_bias is not None:
            z = z + pw_bias[k]
        if pw_norm is not None:
            z = pw_norm.apply(z, slice(k, k + 1))
        if relu_z:
            z = z.relu()
        a = z.flatten(2).softmax(dim=-1, dtype=torch.promote_types(z.dtype, torch.float32)).view_as(z)
        ys.append((1 + a) * x_k)
        maps.append(a)
    return torch.cat(ys, dim=1).to(out_dtype or x.dtype), torch.cat(maps, dim=1)


class SubSpace(nn.Module):
    """One subspace as ordinary layers, with the names of the authors' code. x [N, nin, H, W] -> y of x's shape.

    Args:
        nin: G, channels of the subspace.
        bias: of both convolutions.
        norm: "batch" or None.
        activation: "relu" or None.
        momentum, eps: of both BatchNorms.
        legacy_maxpool_input: pool x itself, as the authors' code did before October 2020.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        nin: int,
        *,
        bias: bool = True,
        norm: str | None = "batch",
        activation: str | None = "relu",
        momentum: float | None = 0.9,
        eps: float = 1e-5,
        legacy_maxpool_input: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.legacy_maxpool_input = legacy_maxpool_input
        made: Any = {"device": device, "dtype": dtype}
        self.conv_dws = nn.Conv2d(nin, nin, kernel_size=1, groups=nin, bias=bias, **made)
        self.bn_dws = nn.BatchNorm2d(nin, momentum=momentum, eps=eps, **made) if norm else nn.Identity()
        self.relu_dws = nn.ReLU() if activation else nn.Identity()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.conv_point = nn.Conv2d(nin, 1, kernel_size=1, bias=bias, **made)
        self.bn_point = nn.BatchNorm2d(1, momentum=momentum, eps=eps, **made) if norm else nn.Identity()
        self.relu_point = nn.ReLU() if activation else nn.Identity()
        self.softmax = nn.Softmax(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, and A [N, 1, H, W]."""
        out = self.relu_dws(self.bn_dws(self.conv_dws(x)))
        out = self.maxpool(x if self.legacy_maxpool_input else out)
        out = self.relu_point(self.bn_point(self.conv_point(out)))
        n, one, h, w = out.shape
        attention = self.softmax(out.view(n, one, -1)).view(n, one, h, w)
        return torch.mul(attention.expand(n, x.shape[1], h, w), x) + x, attention


class ULSAM(nn.Module):
    """The authors' module as ordinary layers: chunk, one `SubSpace` after the other, concatenate.

    Args:
        nin: C, channels of x; num_splits: number of subspaces. The rest as `SubSpace`.
    """

    def __init__(self, nin: int, num_splits: int, **options: Any) -> None:
        super().__init__()
        self.num_splits = num_splits
        self.subspaces = nn.ModuleList(SubSpace(nin // num_splits, **options) for _ in range(num_splits))

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.chunk(x, self.num_splits, dim=1)
        ys = []
        for k, subspace in enumerate(self.subspaces):  # as TorchScript and torch.fx can read it
            ys.append(subspace(chunks[k]))
        return torch.cat(ys, dim=1)
