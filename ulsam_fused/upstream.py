"""The module of the authors' published code, fused: their constructors, their state dict, their numbers.

    from ulsam_fused.upstream import ULSAM      # in place of the authors' file; nothing else changes

Source: https://github.com/Nandan91/ULSAM; Saini et al., WACV 2020, https://arxiv.org/abs/2006.15102.
"""

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from . import modules, state_dict
from .ops.norm_attention import authors_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """What the constructors here take besides the authors' arguments; see `ulsam_fused.ULSAM`."""

    momentum: float | None
    eps: float
    out_dtype: torch.dtype | None
    backend: str
    device: torch.device | str | int | None
    dtype: torch.dtype | None


class _Upstream(modules.ULSAM):
    writes_authors_keys = True

    def __init__(self, channels: int, num_splits: int, legacy_maxpool_input: bool, options: Options) -> None:
        super().__init__(channels, num_splits, bias=True, activation="relu", norm="batch", **options)
        self.legacy_maxpool_input = legacy_maxpool_input
        state_dict.write_authors_keys(self)

    def _norm_attention(
        self, x: Tensor, *, out_dtype: torch.dtype | None = None, update: bool = True, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        out_dtype = out_dtype or authors_dtype(x)
        return super()._norm_attention(x, out_dtype=out_dtype, update=update, need_attention=need_attention)

    def extra_repr(self) -> str:
        legacy = ", legacy_maxpool_input=True" if self.legacy_maxpool_input else ""
        return super().extra_repr() + legacy


class ULSAM(_Upstream):
    """The authors' ULSAM: subspaces of convolution, BatchNorm, ReLU, max-pool and softmax, fused.

    One `ulsam_fused.ULSAM(nin, num_splits, bias=True, activation="relu", norm="batch")` with the authors' constructor
    and state dict: `subspaces.{i}.conv_dws.weight` and so on, in both directions. Parameters are flat in memory:
    dw_weight and dw_bias [nin], pw_weight [nin], pw_bias [num_splits], norms `dw_norm` and `pw_norm`.

    Under CUDA autocast the output is float32, as theirs is, else it has x's type.

    Args:
        nin: C, channels of x.
        nout, h, w: accepted and ignored, as in the authors' code.
        num_splits: number of subspaces; divides nin. Two positional arguments are ambiguous and raise.
        legacy_maxpool_input: the authors' code before October 2020 pooled x itself. Checkpoints of that time have the
            same keys and need this. The depthwise parameters then get no gradient.
        options: momentum (0.9), eps (1e-5), out_dtype, backend, device, dtype as `ulsam_fused.ULSAM`.

    Shape:
        x [N, nin, H, W] -> y [N, nin, H, W], with the memory format of x.

    Raises:
        ValueError, TypeError: a bad argument; in training mode also a batch of one value per channel.
    """

    def __init__(
        self,
        nin: int,
        nout: object = None,
        h: object = None,
        w: object = None,
        num_splits: int | None = None,
        *,
        legacy_maxpool_input: bool = False,
        **options: "Unpack[Options]",
    ) -> None:
        if num_splits is None:
            raise TypeError(
                "ULSAM needs num_splits: by name, ULSAM(nin, num_splits=4), or fifth as in the authors' code, "
                "ULSAM(nin, nout, h, w, num_splits). A second positional argument would be nout, which is ignored"
            )
        super().__init__(nin, num_splits, legacy_maxpool_input, options)
        self.nin, self.nout, self.h, self.w = self.channels, nout, h, w


class SubSpace(_Upstream):
    """The authors' SubSpace, one subspace alone: a `ULSAM` of one, with keys `conv_dws.weight` and so on.

    Args:
        nin: channels of x. legacy_maxpool_input, options: as `ULSAM`.
    """

    subspace_prefix = ""

    def __init__(self, nin: int, *, legacy_maxpool_input: bool = False, **options: "Unpack[Options]") -> None:
        super().__init__(nin, 1, legacy_maxpool_input, options)
        self.nin = self.channels
