"""ULSAM whose subspaces all share one set of weights, as a fused layer and as ordinary layers.

Some public copies of the authors' code are like this: the same depthwise convolution, pointwise convolution and two
BatchNorms are called on one subspace after the other. In training mode each subspace is normalised with its own
statistics, and each call updates the running ones num_splits times.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..distributed import SharesBatch, group_of
from ..ops import checks
from ..ops.called_layers import buffers_untouched, warn_once
from ..ops.module_tensors import Norm, as_batch_norm, described, overridden
from ..ops.norm_attention import authors_dtype, layer_route, norm_attention
from ..ops.one_call import OneCall, Placeholder
from ..ops.routes import Route, general_route
from ..ops.subspace_layers import KNOWN_TENSORS as KNOWN
from .pattern import Layers, Names, layers_at

NAMES = ("dws_conv", "dws_bn", "point_conv", "point_bn")
"""The layers' names in the known copies."""


class _Shared(nn.Module):
    """The four layers under their names."""

    def __init__(
        self,
        layers: Layers,
        num_splits: int,
        *,
        names: Names = NAMES,
        activation: str | None = "relu",
        legacy_maxpool_input: bool = False,
    ) -> None:
        super().__init__()
        dw, *_ = layers
        self.channels = dw.in_channels * num_splits
        self.num_splits = checks.check_num_splits(num_splits, self.channels, "channels")
        checks.check_activation(activation)
        self.activation = activation
        self.legacy_maxpool_input = legacy_maxpool_input
        self.names = names
        for name, layer in zip(names, layers, strict=True):
            self.add_module(name, layer)

    @property
    def layers(self) -> Layers:
        """The layers themselves, not copies."""
        return layers_at(self, self.names)

    def _called(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and A [N, g, H, W], by calling the layers on one subspace after the other."""
        ys, maps = [], []
        for chunk in torch.chunk(x, self.num_splits, dim=1):
            z = self._logits(chunk)
            a = z.flatten(2).softmax(dim=2).view_as(z)
            ys.append(chunk + chunk * a)
            maps.append(a)
        return torch.cat(ys, dim=1), torch.cat(maps, dim=1)

    def _logits(self, x: Tensor) -> Tensor:
        dw, dw_norm, pw, pw_norm = self.layers
        u = self._activate(dw_norm(dw(x)))
        m = F.max_pool2d(x if self.legacy_maxpool_input else u, kernel_size=3, stride=1, padding=1)
        return self._activate(pw_norm(pw(m)))

    def _activate(self, t: Tensor) -> Tensor:
        return t if self.activation is None else F.relu(t)

    def extra_repr(self) -> str:
        legacy = ", legacy_maxpool_input=True" if self.legacy_maxpool_input else ""
        return f"{self.channels}, num_splits={self.num_splits}, activation={self.activation!r}{legacy}"


class SharedULSAM(SharesBatch, OneCall, _Shared):
    """The fused operator with one subspace's weights for all subspaces.

    The given layers become its children. They hold parameters, statistics and mode, and are never called. So the state
    dict has the names and shapes of the code that this layer replaces.

    The output has x's type; under CUDA autocast it is float32, as with ordinary layers.

    Args:
        layers: Conv2d(G, G, 1, groups=G), BatchNorm2d(G), Conv2d(G, 1, 1) and BatchNorm2d(1), with or without biases.
        num_splits: number of subspaces, g.
        names: under which this layer holds the given ones.
        activation: None, or "relu" after both norms.
        legacy_maxpool_input: pool x itself, as the authors' code did before October 2020.
        backend: "auto", "triton", "cpp", "torch" or "reference".

    Shape:
        x [N, g * G, H, W] -> y [N, g * G, H, W], with the memory format of x.

    Raises:
        ValueError, TypeError: a bad argument; in training mode also a batch with only one value per channel.
    """

    def __init__(
        self,
        layers: Layers,
        num_splits: int,
        *,
        names: Names = NAMES,
        activation: str | None = "relu",
        legacy_maxpool_input: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            layers, num_splits, names=names, activation=activation, legacy_maxpool_input=legacy_maxpool_input
        )
        self.backend = backends.check_backend(backend)

    def forward(self, x: Tensor) -> Tensor:
        """y [N, g * G, H, W]."""
        if isinstance(x, Placeholder):
            return self.traced(x)
        return self._attention(x, out_dtype=authors_dtype(x))[0]

    def attention(self, x: Tensor) -> Tensor:
        """The attention maps A [N, g, H, W], float32 (float64 for float64 x); differentiable.

        In training mode they are computed with the batch's statistics; the running ones are not updated.
        """
        _, attention = self._attention(x, update=False, need_attention=True)
        assert attention is not None
        return attention

    def route(self, x: Tensor) -> Route:
        """Which way `forward(x)` would take now; `ulsam_fused.explain` says it in words."""
        if self.problem() is not None:
            return general_route((x, *self.parameters()), backends.requested(self.backend))
        dw_norm, pw_norm = as_batch_norm(self.layers.dw_norm), as_batch_norm(self.layers.pw_norm)
        group = group_of((dw_norm, pw_norm), self.synchronised, self.process_group)
        return layer_route(x, self, dw_norm, pw_norm, pool_input=self.legacy_maxpool_input, group=group)

    def problem(self) -> str | None:
        """Why the operator cannot stand for the layers, so that they are called; None if it can."""
        for name, known, layer in zip(self.names, KNOWN, self.layers, strict=True):
            if not known(layer):
                return f"{name} is {described(layer)}"
            if overridden(layer):
                return f"{name} has hooks or a forward of its own"
        return None

    def joins(self, x: Tensor) -> str | None:
        """Why `forward(x)` has to make vectors of its parameters."""
        return "all subspaces share them"

    def _attention(
        self, x: Tensor, *, out_dtype: torch.dtype | None = None, update: bool = True, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        problem = self.problem()
        if problem is not None:
            warn_once(self, problem)
            with buffers_untouched(self, not update):
                y, maps = self._called(x)
            return (y if out_dtype is None else y.to(out_dtype)), maps.to(
                torch.promote_types(maps.dtype, torch.float32)
            )
        dw, dw_norm, pw, pw_norm = self.layers
        dw_norm, pw_norm = as_batch_norm(dw_norm), as_batch_norm(pw_norm)
        g = self.num_splits
        group = group_of((dw_norm, pw_norm), self.synchronised, self.process_group)
        repeated = tuple(_repeated(norm, g, update) for norm in (dw_norm, pw_norm))
        y, attention = norm_attention(
            x, _flat(dw.weight, g), _flat(dw.bias, g), repeated[0],
            _flat(pw.weight, g), _flat(pw.bias, g), repeated[1], g,
            relu=self.activation is not None, pool_input=self.legacy_maxpool_input, update=update,
            need_attention=need_attention, out_dtype=out_dtype, backend=self.backend, group=group,
        )  # fmt: skip
        for norm, batch in zip((dw_norm, pw_norm), repeated, strict=True):
            if batch.momentum is not None:
                _blend(norm, batch, g)
        return y, attention


class PlainSharedULSAM(_Shared):
    """`SharedULSAM` as ordinary layers, called on one subspace after the other. Arguments are the same but backend."""

    def forward(self, x: Tensor) -> Tensor:
        """y [N, g * G, H, W] for x of this shape."""
        return self._called(x)[0]


def _repeated(norm: nn.BatchNorm2d, g: int, update: bool) -> Norm:
    """What `norm_attention` reads, for all subspaces; momentum 1 leaves this batch's statistics in it, None nothing."""
    mean, var = norm.running_mean, norm.running_var
    if mean is not None and var is not None:
        mean, var = mean.repeat(g), var.repeat(g)
    updates = update and norm.training and norm.track_running_stats and mean is not None
    weight, bias, momentum = norm.weight.repeat(g), norm.bias.repeat(g), 1.0 if updates else None
    return Norm(weight, bias, mean, var, norm.training, norm.eps, momentum, updates, None)


def _blend(norm: nn.BatchNorm2d, batch: Norm, g: int) -> None:
    """Update the norm's running statistics with those of each subspace, as calling it on one after the other does.

    After an empty batch both are equal, so nothing changes but the count.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert batch.running_mean is not None
    assert batch.running_var is not None
    for mean, var in zip(batch.running_mean.chunk(g), batch.running_var.chunk(g), strict=True):
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)  # type: ignore[arg-type]
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(var, momentum)


def _flat(weight: Tensor | None, g: int) -> Any:
    """[g * G] of a layer's weights [G, 1, 1, 1] or [1, G, 1, 1], or [g] of its one bias."""
    return None if weight is None else weight.flatten().repeat(g)
