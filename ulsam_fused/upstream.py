"""The module of the authors' published code, fused: their constructors, their layers and names, their numbers.

    from ulsam_fused.upstream import ULSAM      # in place of the authors' file; nothing else changes

Source: https://github.com/Nandan91/ULSAM; Saini et al., WACV 2020, https://arxiv.org/abs/2006.15102.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import backends, modules, reference, state_dict
from .distributed import group_of
from .ops import checks, flat_tensors, subspace_layers, tracing
from .ops.called_layers import buffers_untouched, warn_once
from .ops.flat_tensors import Flat, Seen, Vectors
from .ops.module_tensors import as_batch_norm, settings_of
from .ops.norm_attention import authors_dtype, layer_route, norm_attention, plainly_valid
from .ops.routes import Route, general_route


class _Upstream(modules.ULSAM):
    """The fused operator over the layers of the authors' module tree, which hold parameters, statistics and modes.

    They are called only where the operator cannot stand for them (`problem`). Else a call takes one vector for each
    kind of tensor: `ops/flat_tensors.py` tells where it comes from.
    """

    norm = "batch"

    def __init__(
        self, channels: int, num_splits: int, legacy_maxpool_input: bool, out_dtype: torch.dtype | None, backend: str
    ) -> None:
        nn.Module.__init__(self)
        self._configure(channels, num_splits, out_dtype, backend)
        self.legacy_maxpool_input = legacy_maxpool_input
        self._flat: Flat | None = None
        self._seen: Seen | None = None
        state_dict.accept_flat_keys(self)
        self.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def _subspaces(self) -> list[Any]:
        """The modules that hold the layers of a subspace."""
        raise NotImplementedError

    @property
    def activation(self) -> str | None:  # type: ignore[override]
        """ "relu" or None, as the layers are."""
        return "relu" if isinstance(self._subspaces()[0].relu_dws, nn.ReLU) else None

    def reset_parameters(self) -> None:
        """Draw all parameters anew from the initial distribution, in the authors' order."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.SyncBatchNorm):
                layer.reset_parameters()

    def problem(self) -> str | None:
        """Why the fused operator cannot stand for the layers as they are, so that they are called; None if it can."""
        return subspace_layers.problem(self._subspaces(), self)

    def route(self, x: Tensor) -> Route:
        """Which way `forward(x)` would take now; `ulsam_fused.explain` says it in words."""
        if self.problem() is not None:
            return general_route((x, *self.parameters()), backends.requested(self.backend))
        first = self._subspaces()[0]
        dw_norm, pw_norm = as_batch_norm(first.bn_dws), as_batch_norm(first.bn_point)
        group = group_of((dw_norm, pw_norm), self.synchronised, self.process_group)
        return layer_route(x, self, dw_norm, pw_norm, pool_input=self.legacy_maxpool_input, group=group)

    def joins(self, x: Tensor) -> str | None:
        """Why `forward(x)` has to join its parameters; None if they lie behind each other and are taken so."""
        if tracing.way_of((x,)) != "direct":
            return "something traces or watches this call"
        if self._flat is None or self._addresses() != self._flat.addresses:
            return "they do not lie behind each other in memory; layer.flatten_parameters() may help"
        return None

    def flatten_parameters(self) -> None:
        """Put the tensors of one kind behind each other in memory, which saves calls from joining them.

        Values and Parameter objects stay. The constructor does it, and so do `to` and its like, copies, and
        `load_state_dict(assign=True)`. Call it after you gave parameters other memory by `p.data = ...`.
        """
        self._flat, self._seen = flat_tensors.flatten(self._subspaces()), None

    def _addresses(self) -> list[int]:
        subspaces = self._subspaces()
        unknown = any(subspace_layers.unknown(s, "") for s in subspaces)
        return [] if unknown else flat_tensors.addresses_of(subspace_layers.tensors_of(subspaces))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self._addresses()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._addresses() != before:
            self.flatten_parameters()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"_flat": None, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not flat_tensors.came_from_another_process(self):
            self.flatten_parameters()

    def __copy__(self) -> Any:
        """A shallow copy has the same tensors, which stay where they are."""
        new = type(self).__new__(type(self))
        new.__dict__.update(super().__getstate__())  # type: ignore[no-untyped-call]
        return new

    def _norm_attention(
        self, x: Tensor, *, out_dtype: torch.dtype | None = None, update: bool = True, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        known = self._seen
        found = None if known is None else known.flat(self, x)
        if known is not None and found is not None:
            x, known_vectors = found
            like = x.shape, x.dtype, x.device, x.layout
            accepted = like in known.accepted
            if not accepted and plainly_valid(x, *known_vectors, self.num_splits):
                accepted = True
                if len(known.accepted) < 100:
                    known.accepted.add(like)
            return self._fused(x, known_vectors, known.first, out_dtype, update, need_attention, "direct", accepted)
        problem = self.problem()
        if problem is not None:
            warn_once(self, problem)
            return self._called(x, out_dtype, update, need_attention)
        subspaces, g = self._subspaces(), self.num_splits
        first = subspaces[0]
        tensors, dw, pw = subspace_layers.tensors_of(subspaces), settings_of(first.bn_dws), settings_of(first.bn_point)
        if self.joins(x) is None:
            assert self._flat is not None
            if dw[2] is not None and pw[2] is not None:  # a momentum, so neither a frozen norm
                self._seen = Seen(self, subspaces, self._flat)
            parameters = [t for t in tensors[: subspace_layers.PARAMETERS * g] if t is not None]
            x, vectors = flat_tensors.differentiable(x, self._flat.vectors, parameters)
            return self._fused(x, flat_tensors.vectors_of(vectors, dw, pw), first, out_dtype, update, need_attention)
        joined = flat_tensors.joined(tensors, g)
        results = self._fused(x, flat_tensors.vectors_of(joined, dw, pw), first, out_dtype, update, need_attention)
        if update:
            updated = [layer for layer, (train, _, _, track) in (("bn_dws", dw), ("bn_point", pw)) if train and track]
            flat_tensors.copy_back(joined, tensors, g, updated)
        return results

    def _fused(
        self,
        x: Tensor,
        vectors: Vectors,
        first: nn.Module,  # the first subspace, which speaks for all
        out_dtype: torch.dtype | None,
        update: bool,
        need_attention: bool,
        way: tracing.Way | None = None,
        checked: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        layers: Any = first._modules
        group = None
        if vectors.dw_norm.training or vectors.pw_norm.training:
            group = group_of((layers["bn_dws"], layers["bn_point"]), self.synchronised, self.process_group)
        return norm_attention(
            x, *vectors, self.num_splits, relu=type(layers["relu_dws"]) is nn.ReLU,
            pool_input=self.legacy_maxpool_input, update=update, need_attention=need_attention,
            out_dtype=out_dtype or authors_dtype(x), backend=self.backend, group=group, way=way,
            checked=checked,
        )  # fmt: skip

    def _called(
        self, x: Tensor, out_dtype: torch.dtype | None, update: bool, need_attention: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `_fused`, by calling the layers, one subspace after the other, as the authors' code does."""
        checks.check_x(x)
        if x.shape[1] != self.channels:
            raise ValueError(f"x must have {self.channels} channels, got shape {list(x.shape)}")
        subspaces, chunks = self._subspaces(), x.chunk(self.num_splits, dim=1)
        attend: Callable[[Any, Tensor], tuple[Tensor, Tensor]] = reference.SubSpace.attend
        if not need_attention and out_dtype is None:
            ys = [attend(s, c)[0] if s is self else s(c) for s, c in zip(subspaces, chunks, strict=True)]
            return torch.cat(ys, dim=1), None
        with buffers_untouched(self, not update):
            maps = torch.cat([attend(s, c)[1] for s, c in zip(subspaces, chunks, strict=True)], dim=1)
        attention = maps.to(torch.promote_types(maps.dtype, torch.float32))
        y = x * (1 + attention).repeat_interleave(self.channels // self.num_splits, dim=1)  # with the format of x
        return y.to(out_dtype or x.dtype), attention

    def extra_repr(self) -> str:
        legacy = ", legacy_maxpool_input=True" if self.legacy_maxpool_input else ""
        return super().extra_repr() + legacy


def _before_loading(layer: Any, *_: object) -> None:
    layer._before = layer._addresses()


def _after_loading(layer: Any, incompatible: object) -> None:
    if layer.__dict__.pop("_before", None) != layer._addresses():  # assign=True
        layer.flatten_parameters()


class ULSAM(_Upstream):
    """The authors' ULSAM: subspaces of convolution, BatchNorm, ReLU, max-pool and softmax, fused.

    Layers, parameters and buffers are theirs: `subspaces.{i}.conv_dws.weight` and so on, of the same shapes and in the
    same order. In memory the tensors of one kind lie behind each other: see `flatten_parameters`. A layer that is
    replaced by something else, or has hooks, is called; then all layers are, in eager PyTorch, and a warning says so.

    Under CUDA autocast the output is float32, as theirs is, else it has x's type.

    Args:
        nin: C, channels of x.
        nout, h, w: accepted and ignored, as in the authors' code.
        num_splits: number of subspaces; divides nin. Two positional arguments are ambiguous and raise.
        legacy_maxpool_input: the authors' code before October 2020 pooled x itself. Checkpoints of that time have the
            same keys and need this. The depthwise parameters then get no gradient.
        momentum, eps: of the norms.
        out_dtype, backend, device, dtype: as `ulsam_fused.ULSAM`.

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
        momentum: float | None = 0.9,
        eps: float = 1e-5,
        out_dtype: torch.dtype | None = None,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_splits is None:
            raise TypeError(
                "ULSAM needs num_splits: by name, ULSAM(nin, num_splits=4), or fifth as in the authors' code, "
                "ULSAM(nin, nout, h, w, num_splits). A second positional argument would be nout, which is ignored"
            )
        super().__init__(nin, num_splits, legacy_maxpool_input, out_dtype, backend)
        self.nin, self.nout, self.h, self.w = self.channels, nout, h, w
        self.subspaces = reference.ULSAM(
            self.channels, self.num_splits, legacy_maxpool_input=legacy_maxpool_input, momentum=momentum, eps=eps,
            device=device, dtype=dtype,
        ).subspaces  # fmt: skip
        self.flatten_parameters()

    def _subspaces(self) -> list[Any]:
        return list(self.subspaces)


class SubSpace(_Upstream):
    """The authors' SubSpace, one subspace alone: as a `ULSAM` of one, with `conv_dws.weight` and so on.

    Args:
        nin: channels of x. All others as `ULSAM`.
    """

    subspace_prefix = ""

    def __init__(
        self,
        nin: int,
        *,
        legacy_maxpool_input: bool = False,
        momentum: float | None = 0.9,
        eps: float = 1e-5,
        out_dtype: torch.dtype | None = None,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(nin, 1, legacy_maxpool_input, out_dtype, backend)
        self.nin = self.channels
        layers = reference.SubSpace(self.channels, momentum=momentum, eps=eps, device=device, dtype=dtype)
        for name, layer in layers.named_children():
            self.add_module(name, layer)
        self.flatten_parameters()

    def _subspaces(self) -> list[Any]:
        return [self]
