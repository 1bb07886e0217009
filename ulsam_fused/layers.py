"""Forwards for the authors' own modules: what a kernel of Hugging Face's Kernel Hub calls its layers.

`kernels.kernelize` puts such a `forward` in place of that of a module of the authors' code, whose parameters and
buffers stay where they are. So these classes hold nothing, and read the attributes of the authors' classes. The joined
vectors that the operator takes are made anew in every call; `ulsam_fused.fuse` makes them once, and is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .ops.norm_attention import authors_dtype, norm_attention


@dataclass
class _Norm:
    """The BatchNorms of all subspaces as one: what `norm_attention` reads of an `nn.BatchNorm2d`."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    training: bool
    eps: float
    momentum: float | None
    track_running_stats: bool


class SubSpace(nn.Module):
    """For `SubSpace` of the authors' code."""

    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        return _attention(x, [self])


class ULSAM(nn.Module):
    """For `ULSAM` of the authors' code."""

    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        return _attention(x, list(cast(Any, self).subspaces))


def _attention(x: Tensor, subspaces: Sequence[Any]) -> Tensor:
    """y [N, C, H, W]. In training mode every norm's running statistics are updated and its batches counted."""
    first, second = ([getattr(s, name) for s in subspaces] for name in ("bn_dws", "bn_point"))
    dw_norm, pw_norm = _joined_norm(first), _joined_norm(second)
    dw, pw = ([getattr(s, name) for s in subspaces] for name in ("conv_dws", "conv_point"))
    y, _ = norm_attention(
        x, _joined([c.weight for c in dw]), _joined_if_there([c.bias for c in dw]), cast(nn.BatchNorm2d, dw_norm),
        _joined([c.weight for c in pw]), _joined_if_there([c.bias for c in pw]), cast(nn.BatchNorm2d, pw_norm),
        len(subspaces), relu=True, out_dtype=authors_dtype(x),
    )  # fmt: skip
    for norms, joined in ((first, dw_norm), (second, pw_norm)):
        if joined.training and joined.track_running_stats:
            _take_apart(norms, joined)
    return y


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All parts as one vector."""
    return torch.cat([part.flatten() for part in parts])


def _joined_if_there(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return _joined(there) if there else None


def _joined_norm(norms: Sequence[nn.BatchNorm2d]) -> _Norm:
    first = norms[0]
    settings = [(norm.training, norm.eps, norm.momentum, norm.track_running_stats) for norm in norms]
    if any(each != settings[0] for each in settings):
        raise ValueError(f"the norms of all subspaces must have one mode and the same settings, got {settings}")
    return _Norm(
        _joined([norm.weight for norm in norms]), _joined([norm.bias for norm in norms]),
        _joined_if_there([norm.running_mean for norm in norms]), _joined_if_there([norm.running_var for norm in norms]),
        first.num_batches_tracked, first.training, first.eps, first.momentum, first.track_running_stats,
    )  # fmt: skip


def _take_apart(norms: Sequence[nn.BatchNorm2d], joined: _Norm) -> None:
    """Give each norm its part of the updated statistics; the first one's batches are counted already."""
    for name in ("running_mean", "running_var"):
        whole = getattr(joined, name)
        if whole is not None:
            for norm, part in zip(norms, whole.detach().chunk(len(norms)), strict=True):
                getattr(norm, name).copy_(part)
    for norm in norms[1:]:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
