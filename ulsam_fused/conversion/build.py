"""Build fused layers from ordinary ones, and the other way round, with the same weights, buffers and modes.

New modules are made on the meta device and then get copies of the weights, so no random number is drawn.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import modules, reference, upstream
from .pattern import Layers, Names, layers_at
from .shared_weights import NAMES, PlainSharedULSAM, SharedULSAM

FUSED = (modules.ULSAM, SharedULSAM)  # and what derives from them

_AUTHORS_NAMES = ("conv_dws", "bn_dws", "conv_point", "bn_point")


@dataclass(frozen=True)
class Plan:
    """How a module of ordinary layers may become a fused one."""

    parts: tuple[str, ...]  # names of the subspaces inside the module; ("",): the module itself is one
    names: Names  # of the layers inside a subspace
    num_splits: int  # more than len(parts), which is 1 then: all subspaces share the weights of this one
    activation: str | None
    legacy: bool  # legacy_maxpool_input

    def build(self, module: nn.Module) -> nn.Module:
        """The fused layer, in the module's mode. It has copies of the weights; a `SharedULSAM` has the layers."""
        new: SharedULSAM | upstream.ULSAM | upstream.SubSpace
        subspaces = [layers_at(module.get_submodule(part), self.names) for part in self.parts]
        if self.num_splits > len(self.parts):
            names = NAMES if any("." in name for name in self.names) else self.names
            new = SharedULSAM(
                subspaces[0], self.num_splits, names=names, activation=self.activation, legacy_maxpool_input=self.legacy
            )
        else:
            new = _joined_layers(subspaces, self.parts == ("",), self.activation, self.legacy)
        for name in ("nout", "h", "w"):
            if hasattr(module, name) and isinstance(new, upstream.ULSAM):
                setattr(new, name, getattr(module, name))
        new.training = module.training
        return new

    @property
    def renames(self) -> bool:
        """Whether the fused layer's state dict has other names than the module's."""
        if self.num_splits > len(self.parts):
            return any("." in name for name in self.names)
        as_authors = self.parts == ("",) or self.parts == tuple(f"subspaces.{i}" for i in range(self.num_splits))
        return not as_authors or self.names != _AUTHORS_NAMES


def _joined_layers(
    parts: list[Layers], alone: bool, activation: str | None, legacy: bool
) -> upstream.ULSAM | upstream.SubSpace:
    """One layer for these subspaces, which agree in settings and modes. alone: a `SubSpace` for the only one."""
    group, g = parts[0].dw.in_channels, len(parts)
    layer: upstream.ULSAM | upstream.SubSpace
    if alone:
        layer = upstream.SubSpace(group, legacy_maxpool_input=legacy, device="meta")
    else:
        layer = upstream.ULSAM(group * g, num_splits=g, legacy_maxpool_input=legacy, device="meta")
    layer.activation = activation
    dw_biases = [part.dw.bias for part in parts if part.dw.bias is not None]
    pw_biases = [part.pw.bias for part in parts if part.pw.bias is not None]
    layer.dw_weight = _joined([part.dw.weight for part in parts])
    layer.dw_bias = _joined(dw_biases) if dw_biases else None
    layer.pw_weight = _joined([part.pw.weight for part in parts])
    layer.pw_bias = _joined(pw_biases) if pw_biases else None
    layer.dw_norm = _joined_norm([part.dw_norm for part in parts])
    layer.pw_norm = _joined_norm([part.pw_norm for part in parts])
    return layer


def plain(layer: modules.ULSAM | SharedULSAM) -> nn.Module:
    """The ordinary layers that do the same as a fused layer: of reference.py, or a `PlainSharedULSAM`."""
    tree: reference.SubSpace | reference.ULSAM | PlainSharedULSAM
    if isinstance(layer, SharedULSAM):
        tree = PlainSharedULSAM(
            layer.layers, layer.num_splits, names=layer.names, activation=layer.activation,
            legacy_maxpool_input=layer.legacy_maxpool_input,
        )  # fmt: skip
        tree.training = layer.training
        return tree
    alone = isinstance(layer, upstream.SubSpace)
    make = reference.SubSpace if alone else functools.partial(reference.ULSAM, num_splits=layer.num_splits)
    with torch.device("meta"):
        tree = make(
            layer.channels, bias=layer.dw_bias is not None or layer.pw_bias is not None, norm=layer.norm,
            activation=layer.activation, legacy_maxpool_input=getattr(layer, "legacy_maxpool_input", False),
        )  # fmt: skip
    tree.train(layer.training)
    subspaces = [module for module in tree.modules() if isinstance(module, reference.SubSpace)]
    for k, subspace in enumerate(subspaces):
        _fill(subspace, layer, k)
    return tree


def _fill(subspace: reference.SubSpace, layer: modules.ULSAM, k: int) -> None:
    """Give the k-th subspace its part of a fused layer."""
    g, group = layer.num_splits, layer.channels // layer.num_splits

    def cut(parameter: nn.Parameter, *shape: int) -> nn.Parameter:
        return nn.Parameter(_cut(parameter, k, g).reshape(shape), requires_grad=parameter.requires_grad)

    dw, pw = subspace.conv_dws, subspace.conv_point
    dw.weight, pw.weight = cut(layer.dw_weight, group, 1, 1, 1), cut(layer.pw_weight, 1, group, 1, 1)
    dw.bias = None if layer.dw_bias is None else cut(layer.dw_bias, group)
    pw.bias = None if layer.pw_bias is None else cut(layer.pw_bias, 1)
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


def _joined(parts: list[Tensor]) -> nn.Parameter:
    """All parts as one vector."""
    joined = torch.cat([part.detach().flatten() for part in parts])
    return nn.Parameter(joined, requires_grad=all(part.requires_grad for part in parts))


def _joined_norm(norms: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """One norm for the channels of all."""

    def joined(key: str) -> Tensor:
        return torch.cat([getattr(norm, key).detach() for norm in norms])

    return _norm_like(norms[0], sum(norm.num_features for norm in norms), joined)


def _norm_like(
    norm: nn.BatchNorm2d,
    channels: int,
    tensor: Callable[[str], Tensor],
    synchronised: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> nn.BatchNorm2d:
    """A norm like this one: settings, mode, count and class are the same, but a SyncBatchNorm if synchronised.

    tensor: gives the new norm's weight, bias and running statistics, by their names.
    """
    new: nn.BatchNorm2d | nn.SyncBatchNorm
    track = norm.running_mean is not None
    if isinstance(norm, nn.SyncBatchNorm) or synchronised:
        group = getattr(norm, "process_group", process_group)
        new = nn.SyncBatchNorm(channels, norm.eps, norm.momentum, True, track, group, device="meta")
    else:
        new = nn.BatchNorm2d(channels, norm.eps, norm.momentum, True, track, device="meta")
    new.track_running_stats = norm.track_running_stats
    new.training = norm.training
    new.weight = nn.Parameter(tensor("weight"), requires_grad=norm.weight.requires_grad)
    new.bias = nn.Parameter(tensor("bias"), requires_grad=norm.bias.requires_grad)
    if norm.running_mean is not None:
        new.running_mean, new.running_var = tensor("running_mean"), tensor("running_var")
    if norm.num_batches_tracked is not None:
        new.num_batches_tracked = norm.num_batches_tracked.clone()
    return cast(nn.BatchNorm2d, new)  # a SyncBatchNorm has the same attributes
