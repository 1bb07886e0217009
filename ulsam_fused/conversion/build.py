"""Fused layers from ordinary ones with the same weights, buffers and modes, and the other way round.

Everything new is built without weights and then given copies, so that no random number is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import modules, reference, upstream
from . import shared_weights as shared
from .pattern import Layers, Names, layers_at

FUSED = (modules.ULSAM, shared.SharedULSAM)  # and what derives from them

_AUTHORS_NAMES = ("conv_dws", "bn_dws", "conv_point", "bn_point")


@dataclass(frozen=True)
class Plan:
    """How a module of ordinary layers may become a fused one."""

    parts: tuple[str, ...]  # names of the subspaces inside the module; ("",): it is one itself
    names: Names  # of the layers inside a subspace
    num_splits: int  # more than there are parts: they share the weights of the only one
    activation: str | None
    legacy: bool  # legacy_maxpool_input

    def build(self, module: nn.Module) -> nn.Module:
        """The fused layer, in the module's mode; it has copies of the weights, or where they are shared the layers."""
        new: Any
        subspaces = self.layers(module)
        if self.num_splits > len(self.parts):
            names = shared.NAMES if any("." in name for name in self.names) else self.names
            new = shared.SharedULSAM(
                subspaces[0], self.num_splits, names=names, activation=self.activation, legacy_maxpool_input=self.legacy
            )
        else:
            new = _joined_layers(subspaces, self.parts == ("",), self.activation, self.legacy)
        for name in ("nout", "h", "w"):
            if hasattr(module, name) and isinstance(new, upstream.ULSAM):
                setattr(new, name, getattr(module, name))
        new.training = module.training
        return new  # type: ignore[no-any-return]

    def layers(self, module: nn.Module) -> list[Layers]:
        return [layers_at(module.get_submodule(part), self.names) for part in self.parts]

    @property
    def renames(self) -> bool:
        """Whether the state dict of the fused layer has other names than the module's."""
        if self.num_splits > len(self.parts):
            return any("." in name for name in self.names)
        as_authors = self.parts == ("",) or self.parts == tuple(f"subspaces.{i}" for i in range(self.num_splits))
        return not as_authors or self.names != _AUTHORS_NAMES


def _joined_layers(
    parts: list[Layers], alone: bool, activation: str | None, legacy: bool
) -> upstream.ULSAM | upstream.SubSpace:
    """One layer for all these subspaces, which agree in settings and modes; alone: a `SubSpace` for the only one."""
    group, g = parts[0].dw.in_channels, len(parts)
    layer: upstream.ULSAM | upstream.SubSpace
    if alone:
        layer = upstream.SubSpace(group, legacy_maxpool_input=legacy, device="meta")
    else:
        layer = upstream.ULSAM(group * g, num_splits=g, legacy_maxpool_input=legacy, device="meta")
    layer.activation = activation
    layer.dw_weight = cast(nn.Parameter, _joined([part.dw.weight for part in parts]))
    layer.dw_bias = _joined([part.dw.bias for part in parts])
    layer.pw_weight = cast(nn.Parameter, _joined([part.pw.weight for part in parts]))
    layer.pw_bias = _joined([part.pw.bias for part in parts])
    layer.dw_norm = _joined_norm([part.dw_norm for part in parts])
    layer.pw_norm = _joined_norm([part.pw_norm for part in parts])
    return layer


def plain(layer: modules.ULSAM | shared.SharedULSAM) -> nn.Module:
    """The tree of ordinary layers that a fused layer stands for: of reference.py, or a `PlainSharedULSAM`."""
    tree: nn.Module
    if isinstance(layer, shared.SharedULSAM):
        tree = shared.PlainSharedULSAM(
            layer.layers, layer.num_splits, names=layer.names, activation=layer.activation,
            legacy_maxpool_input=layer.legacy_maxpool_input,
        )  # fmt: skip
        tree.training = layer.training
        return tree
    options: dict[str, Any] = {
        "bias": layer.dw_bias is not None or layer.pw_bias is not None,
        "norm": layer.norm,
        "activation": layer.activation,
        "legacy_maxpool_input": getattr(layer, "legacy_maxpool_input", False),
    }
    subspaces: Sequence[nn.Module]
    with torch.device("meta"):
        if isinstance(layer, upstream.SubSpace):
            tree = reference.SubSpace(layer.channels, **options)
            subspaces = [tree]
        else:
            tree = reference.ULSAM(layer.channels, layer.num_splits, **options)
            subspaces = list(tree.subspaces)
    tree.train(layer.training)
    for k, subspace in enumerate(subspaces):
        _fill(subspace, layer, k)
    return tree


def _fill(subspace: Any, layer: modules.ULSAM, k: int) -> None:
    """Gives the k-th subspace its part of a fused layer."""
    g, group = layer.num_splits, layer.channels // layer.num_splits

    def cut(parameter: nn.Parameter | None, *shape: int) -> nn.Parameter | None:
        if parameter is None:
            return None
        return nn.Parameter(_cut(parameter, k, g).reshape(shape), requires_grad=parameter.requires_grad)

    subspace.conv_dws.weight, subspace.conv_dws.bias = cut(layer.dw_weight, group, 1, 1, 1), cut(layer.dw_bias, group)
    subspace.conv_point.weight, subspace.conv_point.bias = cut(layer.pw_weight, 1, group, 1, 1), cut(layer.pw_bias, 1)
    if layer.dw_norm is None or layer.pw_norm is None:
        return
    for name, norm in (("bn_dws", layer.dw_norm), ("bn_point", layer.pw_norm)):

        def part(key: str, norm: nn.BatchNorm2d = norm) -> Tensor:
            return _cut(getattr(norm, key), k, g)

        new = _norm_like(norm, norm.num_features // g, part, layer.synchronised, layer.process_group)
        setattr(subspace, name, new)


def _cut(t: Tensor, k: int, g: int) -> Tensor:
    """A copy of the k-th of g parts of a vector."""
    size = t.numel() // g
    return t.detach()[k * size : (k + 1) * size].clone()


def _joined(parts: Sequence[Tensor | None]) -> nn.Parameter | None:
    """All parts as one vector; None where there are none."""
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    joined = torch.cat([t.detach().flatten() for t in tensors])
    return nn.Parameter(joined, requires_grad=tensors[0].requires_grad)


def _joined_norm(norms: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    def joined(key: str) -> Tensor:
        return torch.cat([getattr(norm, key).detach() for norm in norms])

    return _norm_like(norms[0], sum(norm.num_features for norm in norms), joined)


def _norm_like(
    norm: nn.BatchNorm2d,
    channels: int,
    tensor: Callable[[str], Tensor],
    synchronised: bool = False,
    process_group: object = None,
) -> nn.BatchNorm2d:
    """A norm with the settings, the mode and the count of this one and with other tensors, by their names."""
    kind: Any = nn.BatchNorm2d
    options: dict[str, Any] = {"track_running_stats": norm.running_mean is not None, "device": "meta"}
    if isinstance(norm, nn.SyncBatchNorm) or synchronised:
        kind, options["process_group"] = nn.SyncBatchNorm, getattr(norm, "process_group", process_group)
    new = kind(channels, norm.eps, norm.momentum, **options)
    new.track_running_stats = norm.track_running_stats
    new.training = norm.training
    new.weight = nn.Parameter(tensor("weight"), requires_grad=norm.weight.requires_grad)
    new.bias = nn.Parameter(tensor("bias"), requires_grad=norm.bias.requires_grad)
    if norm.running_mean is not None:
        new.running_mean, new.running_var = tensor("running_mean"), tensor("running_var")
    if norm.num_batches_tracked is not None:
        new.num_batches_tracked = norm.num_batches_tracked.clone()
    return new  # type: ignore[no-any-return]
