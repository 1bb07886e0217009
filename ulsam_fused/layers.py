"""Forwards for the authors' own modules: what a kernel of Hugging Face's Kernel Hub calls its layers.

`kernels.kernelize` puts such a `forward` in place of that of a module of the authors' code, whose parameters and
buffers stay where they are. So these classes hold nothing, and read the attributes of the authors' classes. The joined
vectors that the operator takes are made anew in every call; `ulsam_fused.fuse` makes them once, and is faster.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from .ops.flat_tensors import copy_back, joined, vectors_of
from .ops.module_tensors import Settings, settings_of
from .ops.norm_attention import authors_dtype, norm_attention
from .ops.subspace_layers import tensors_of


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
    g, tensors = len(subspaces), tensors_of(subspaces)
    vectors = joined(tensors, g)
    dw, pw = (_settings([getattr(s, name) for s in subspaces]) for name in ("bn_dws", "bn_point"))
    y, _ = norm_attention(x, *vectors_of(vectors, dw, pw), g, relu=True, out_dtype=authors_dtype(x))
    updated = [layer for layer, (train, _, _, track) in (("bn_dws", dw), ("bn_point", pw)) if train and track]
    copy_back(vectors, tensors, g, updated)
    return y


def _settings(norms: Sequence[nn.Module]) -> Settings:
    """Those of all these norms."""
    settings = [settings_of(norm) for norm in norms]
    if any(each != settings[0] for each in settings):
        raise ValueError(f"the norms of all subspaces must have one mode and the same settings, got {settings}")
    return settings[0]
