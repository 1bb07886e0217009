"""The operator as a layer."""

import math

import torch
from torch import Tensor, nn

from . import backends, state_dict
from .distributed import SharesBatch, group_of
from .functional import subspace_attention
from .ops import checks
from .ops.called_layers import buffers_untouched, warn_once, with_called_norms
from .ops.module_tensors import (
    as_batch_norm,
    convolution_tensors,
    described,
    is_batch_norm,
    is_frozen_norm,
    is_plain_norm,
    norms_of,
    overridden,
)
from .ops.norm_attention import layer_route, norm_attention
from .ops.one_call import OneCall, Placeholder
from .ops.routes import Route, general_route


class ULSAM(SharesBatch, OneCall, nn.Module):
    """Ultra-lightweight subspace attention module (ULSAM), fused; shape in, same shape out.

    By default the form of the paper: 2 * channels parameters and 2 * channels * H * W multiply-accumulates, whatever
    num_splits. See `subspace_attention` for the formula. The initialisation is PyTorch's for those convolutions:
    dw_weight and dw_bias uniform in (-1, 1), pw_weight and pw_bias uniform in (-1/sqrt(G), 1/sqrt(G)) with
    G = channels / num_splits.

    With `norm="batch"`, `bias=True` and `activation="relu"` it is the module of the authors' published code: a
    BatchNorm after each convolution, `dw_norm` over the channels and `pw_norm` over the subspaces. Both are children
    (torch.nn.BatchNorm2d) that hold parameters, statistics and mode, and are never called. In eval mode, or frozen by
    their own `eval()`, they fold into the operator; in training mode batch statistics are fused.
    `ulsam_fused.upstream` has the same with the authors' constructor and state dict, which this class loads too.

    Half precision: stored in 16 bits, y is x almost everywhere, because the attention A is about 1 / (H*W); see
    `out_dtype`.

    Args:
        channels: C of the input.
        num_splits: number of subspaces; divides channels.
        bias: give both convolutions a bias.
        activation: None, or "relu" after both convolutions.
        norm: None, or "batch" after both convolutions.
        momentum, eps: of both norms, as in torch.nn.BatchNorm2d; the authors' momentum is 0.9.
        out_dtype: type of the output; x's by default. torch.float32 keeps what 16 bits round away.
        backend: "auto", "triton", "cpp", "torch" or "reference".
        device, dtype: of the parameters.

    Shape:
        x [N, channels, H, W] -> y [N, channels, H, W], with the memory format of x.

    Raises:
        ValueError, TypeError: a bad argument; in training mode with a norm also a batch of one value per channel.

    Source: Saini et al., WACV 2020, https://arxiv.org/abs/2006.15102; https://github.com/Nandan91/ULSAM.
    """

    subspace_prefix = "subspaces.{}."
    """What stands before the authors' keys of a subspace in a state dict."""

    legacy_maxpool_input = False
    """Whether x itself is pooled, as the authors' code did before October 2020."""

    dw_weight: nn.Parameter
    pw_weight: nn.Parameter
    dw_bias: nn.Parameter | None
    pw_bias: nn.Parameter | None
    dw_norm: nn.BatchNorm2d | None
    pw_norm: nn.BatchNorm2d | None

    def __init__(
        self,
        channels: int,
        num_splits: int = 4,
        *,
        bias: bool = False,
        activation: str | None = None,
        norm: str | None = None,
        momentum: float | None = 0.9,
        eps: float = 1e-5,
        out_dtype: torch.dtype | None = None,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.check_activation(activation)
        has_norm = checks.check_norm(norm)
        self._configure(channels, num_splits, out_dtype, backend)
        self.activation = activation
        self.norm = norm
        self.dw_weight = nn.Parameter(torch.empty(self.channels, device=device, dtype=dtype))
        self.pw_weight = nn.Parameter(torch.empty(self.channels, device=device, dtype=dtype))
        if bias:
            self.dw_bias = nn.Parameter(torch.empty(self.channels, device=device, dtype=dtype))
            self.pw_bias = nn.Parameter(torch.empty(self.num_splits, device=device, dtype=dtype))
        else:
            self.register_parameter("dw_bias", None)
            self.register_parameter("pw_bias", None)
        self.dw_norm = self.pw_norm = None
        if has_norm:
            self.dw_norm = nn.BatchNorm2d(self.channels, eps, momentum, device=device, dtype=dtype)
            self.pw_norm = nn.BatchNorm2d(self.num_splits, eps, momentum, device=device, dtype=dtype)
            state_dict.accept_authors_keys(self)
        self.reset_parameters()

    def _configure(self, channels: int, num_splits: int, out_dtype: torch.dtype | None, backend: str) -> None:
        self.channels = checks.check_channels(channels)
        self.num_splits = checks.check_num_splits(num_splits, self.channels, "channels")
        checks.check_out_dtype(out_dtype)
        self.out_dtype = out_dtype
        self.backend = backends.check_backend(backend)

    def reset_parameters(self) -> None:
        """Draw all parameters anew from the initial distribution."""
        pw_bound = 1 / math.sqrt(self.channels // self.num_splits)
        for parameter, bound in (
            (self.dw_weight, 1.0),
            (self.dw_bias, 1.0),
            (self.pw_weight, pw_bound),
            (self.pw_bias, pw_bound),
        ):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        for norm in (self.dw_norm, self.pw_norm):
            if norm is not None:
                norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H, W]."""
        if isinstance(x, Placeholder):
            return self.traced(x)
        if self.norm is not None:
            return self._norm_attention(x, out_dtype=self.out_dtype)[0]
        dw_weight, dw_bias, pw_weight, pw_bias = convolution_tensors(self)
        return subspace_attention(
            x,
            dw_weight,
            pw_weight,
            self.num_splits,
            dw_bias,
            pw_bias,
            activation=self.activation,
            out_dtype=self.out_dtype,
            backend=self.backend,
        )

    def attention(self, x: Tensor) -> Tensor:
        """The attention maps A [N, num_splits, H, W], float32 (float64 for float64 x); differentiable.

        In training mode with a norm they are those of the batch's statistics; running statistics are not updated.
        """
        if self.norm is not None:
            _, attention = self._norm_attention(x, update=False, need_attention=True)
            assert attention is not None
            return attention
        dw_weight, dw_bias, pw_weight, pw_bias = convolution_tensors(self)
        _, attention = subspace_attention(
            x,
            dw_weight,
            pw_weight,
            self.num_splits,
            dw_bias,
            pw_bias,
            activation=self.activation,
            return_attention=True,
            backend=self.backend,
        )
        return attention

    def route(self, x: Tensor) -> Route:
        """Which way `forward(x)` would take now; `ulsam_fused.explain` says it in words."""
        if self.norm is None or self.problem() is not None:
            return general_route((x, *self.parameters()), backends.requested(self.backend))
        dw_norm, pw_norm = map(as_batch_norm, norms_of(self))
        group = group_of((dw_norm, pw_norm), self.synchronised, self.process_group)
        return layer_route(x, self, dw_norm, pw_norm, pool_input=self.legacy_maxpool_input, group=group)

    def _norm_attention(
        self, x: Tensor, *, out_dtype: torch.dtype | None = None, update: bool = True, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        dw_norm, pw_norm = norms_of(self)
        dw_weight, dw_bias, pw_weight, pw_bias = convolution_tensors(self)
        relu, pool_input = self.activation is not None, self.legacy_maxpool_input
        if not (is_plain_norm(dw_norm) and is_plain_norm(pw_norm)):
            problem = self.problem()
            if problem is not None:
                warn_once(self, problem)
                with buffers_untouched(self, not update):
                    return with_called_norms(
                        x, dw_weight, dw_bias, dw_norm, pw_weight, pw_bias, pw_norm, self.num_splits,
                        relu=relu, pool_input=pool_input, out_dtype=out_dtype,
                    )  # fmt: skip
            dw_norm, pw_norm = as_batch_norm(dw_norm), as_batch_norm(pw_norm)
        group = group_of((dw_norm, pw_norm), self.synchronised, self.process_group)
        return norm_attention(
            x, dw_weight, dw_bias, dw_norm, pw_weight, pw_bias, pw_norm, self.num_splits,
            relu=relu, pool_input=pool_input, update=update,
            need_attention=need_attention, out_dtype=out_dtype, backend=self.backend, group=group,
        )  # fmt: skip

    def joins(self, x: Tensor) -> str | None:
        """Why `forward(x)` has to join its parameters first; None: they are vectors."""
        return None

    def problem(self) -> str | None:
        """Why the fused operator cannot serve this layer as it is, so that its norms are called; None if it can."""
        if self.norm is None:
            return None
        for name, norm in zip(("dw_norm", "pw_norm"), norms_of(self), strict=True):
            if not (is_batch_norm(norm) or is_frozen_norm(norm)):
                return f"{name} is {described(norm)}"
            if overridden(norm):
                return f"{name} has hooks or a forward of its own"
        return None

    def extra_repr(self) -> str:
        parts = [f"{self.channels}, num_splits={self.num_splits}"]
        if getattr(self, "dw_bias", None) is not None:
            parts.append("bias=True")
        for name in ("activation", "norm", "out_dtype"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value!r}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)
