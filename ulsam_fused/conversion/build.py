"""Build fused layers from ordinary ones, and the other way round, with the same weights, buffers and modes.

Where both have the same layers, the new module takes the very layers, so the parameters stay the same objects. New
modules are made on the meta device first, so no random number is drawn.
"""

import copy
import functools
from dataclasses import dataclass
from typing import cast

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
        """The fused layer, in the module's mode; it has the module's layers themselves."""
        new: SharedULSAM | upstream.ULSAM | upstream.SubSpace
        subspaces = [layers_at(module.get_submodule(part), self.names) for part in self.parts]
        if self.num_splits > len(self.parts):
            names = NAMES if any("." in name for name in self.names) else self.names
            new = SharedULSAM(
                subspaces[0], self.num_splits, names=names, activation=self.activation, legacy_maxpool_input=self.legacy
            )
        else:
            new = _tree(subspaces, self.parts == ("",), self.activation, self.legacy)
        for name in ("nout", "h", "w"):
            if hasattr(module, name) and isinstance(new, upstream.ULSAM):
                setattr(new, name, getattr(module, name))
        if isinstance(new, upstream.ULSAM):
            new.subspaces.training = module.training
            for subspace, part in zip(new.subspaces, self.parts, strict=True):
                subspace.training = module.get_submodule(part).training
        new.training = module.training
        return new

    @property
    def renames(self) -> bool:
        """Whether the fused layer's state dict has other names than the module's."""
        if self.num_splits > len(self.parts):
            return any("." in name for name in self.names)
        as_authors = self.parts == ("",) or self.parts == tuple(f"subspaces.{i}" for i in range(self.num_splits))
        return not as_authors or self.names != _AUTHORS_NAMES


def _tree(parts: list[Layers], alone: bool, activation: str | None, legacy: bool) -> upstream.ULSAM | upstream.SubSpace:
    """One layer of these very layers, which agree in settings and modes. alone: a `SubSpace` of the only ones."""
    group, g = parts[0].dw.in_channels, len(parts)
    layer: upstream.ULSAM | upstream.SubSpace
    if alone:
        layer = upstream.SubSpace(group, legacy_maxpool_input=legacy, device="meta")
    else:
        layer = upstream.ULSAM(group * g, num_splits=g, legacy_maxpool_input=legacy, device="meta")
    subspaces = [layer] if isinstance(layer, upstream.SubSpace) else layer.subspaces
    for subspace, layers in zip(subspaces, parts, strict=True):
        for name, own in zip(_AUTHORS_NAMES, layers, strict=True):
            subspace.add_module(name, own)
        if activation is None:
            subspace.relu_dws, subspace.relu_point = nn.Identity(), nn.Identity()
    layer.flatten_parameters()
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
    holds_layers = isinstance(layer, upstream.ULSAM | upstream.SubSpace)
    tree = make(
        layer.channels, bias=holds_layers or layer.dw_bias is not None, norm=layer.norm, activation=layer.activation,
        legacy_maxpool_input=layer.legacy_maxpool_input, device="meta",
    )  # fmt: skip
    tree.train(layer.training)
    if holds_layers:
        tree._modules.update(layer._modules)
    else:
        for k, subspace in enumerate(cast(reference.ULSAM, tree).subspaces):
            _fill(cast(reference.SubSpace, subspace), layer, k)
    return nn.SyncBatchNorm.convert_sync_batchnorm(tree, layer.process_group) if layer.synchronised else tree


def _fill(subspace: reference.SubSpace, layer: modules.ULSAM, k: int) -> None:
    """Give the k-th subspace its part of a flat layer."""
    g, group = layer.num_splits, layer.channels // layer.num_splits

    def cut(parameter: nn.Parameter, *shape: int) -> nn.Parameter:
        return nn.Parameter(_cut(parameter, k, g).reshape(shape), requires_grad=parameter.requires_grad)

    dw, pw = subspace.conv_dws, subspace.conv_point
    dw.weight, pw.weight = cut(layer.dw_weight, group, 1, 1, 1), cut(layer.pw_weight, 1, group, 1, 1)
    dw.bias = None if layer.dw_bias is None else cut(layer.dw_bias, group)
    pw.bias = None if layer.pw_bias is None else cut(layer.pw_bias, 1)
    if layer.dw_norm is not None and layer.pw_norm is not None:
        subspace.bn_dws, subspace.bn_point = _norm_part(layer.dw_norm, k, g), _norm_part(layer.pw_norm, k, g)


def _cut(t: Tensor, k: int, g: int) -> Tensor:
    """A copy of the k-th of g parts of a vector."""
    size = t.numel() // g
    return t.detach()[k * size : (k + 1) * size].clone()


def _norm_part(norm: nn.BatchNorm2d, k: int, g: int) -> nn.BatchNorm2d:
    """A copy of a norm, for the k-th of g parts of its channels."""
    process_group = getattr(norm, "process_group", None)
    new = copy.deepcopy(norm, {id(process_group): process_group})
    for name, p in new._parameters.items():
        if p is not None:
            new._parameters[name] = nn.Parameter(_cut(p, k, g), requires_grad=p.requires_grad)
    for name, t in new._buffers.items():
        if t is not None and t.dim():
            new._buffers[name] = _cut(t, k, g)
    if hasattr(new, "num_features"):
        new.num_features = new.num_features // g
    return new
