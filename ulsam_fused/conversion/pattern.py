"""Recognise a ULSAM of ordinary layers, and say what is wrong with a module that only resembles one.

A subspace is a module of these layers and nothing else, under any names, directly or inside nn.Sequential:

    Conv2d(G, G, 1, groups=G)   BatchNorm2d(G)   MaxPool2d(3, 1, 1)   Conv2d(G, 1, 1)   BatchNorm2d(1)   ReLU   Softmax

Pool, ReLU and softmax may be missing, because some code calls functions instead. The pattern does not say in which
order the layers are used, nor on which channels; equivalence.py runs the module to find out.

A module resembles a subspace if it has a 1x1 convolution to one channel and, beside it, either two of {a depthwise 1x1
convolution, a pool of stride 1, a softmax} or a depthwise 1x1 convolution and a norm of one channel.
"""

import re
from itertools import permutations
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

Names = tuple[str, str, str, str]
"""The names of a subspace's four layers inside it, in the order of `Layers`."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SPLITS = ("num_splits", "splits", "num_split", "n_splits", "groups", "g")


class Layers(NamedTuple):
    """The layers of a subspace that have weights."""

    dw: nn.Conv2d  # G -> G, depthwise
    dw_norm: nn.BatchNorm2d  # of G channels; or a SyncBatchNorm
    pw: nn.Conv2d  # G -> 1
    pw_norm: nn.BatchNorm2d  # of 1 channel; or a SyncBatchNorm


def layers_at(module: nn.Module, names: Names) -> Layers:
    """The layers that have these names inside the module."""
    return Layers(*(module.get_submodule(name) for name in names))  # type: ignore[arg-type]


def resembles_subspace(module: nn.Module) -> bool:
    """Whether the module resembles a subspace, as the head of this file defines it."""
    layers = _leaves(module).values()
    convolutions = [layer for layer in layers if isinstance(layer, _CONVOLUTIONS) and set(layer.kernel_size) == {1}]
    points = [layer for layer in convolutions if layer.out_channels == 1 and layer.groups == 1]
    depthwise = any(
        layer is not point and layer.groups == layer.in_channels == layer.out_channels == point.in_channels
        for point in points
        for layer in convolutions
    )
    pool = any(isinstance(layer, _POOLS) and set(_pair(layer.stride)) == {1} for layer in layers)
    softmax = any(isinstance(layer, nn.Softmax | nn.LogSoftmax) for layer in layers)
    one_channel = any(getattr(layer, "num_features", None) == 1 for layer in layers)
    return bool(points) and (depthwise + pool + softmax >= 2 or (depthwise and one_channel))


def assignments(module: nn.Module) -> list[Names]:
    """The ways to tell which layer is which, for a module of 2 convolutions and 2 BatchNorms.

    There is one way, or none. With G = 1 there are several, and only running the module tells the right one.
    """
    layers = _leaves(module)
    convolutions = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    norms = [name for name, layer in layers.items() if isinstance(layer, _NORMS)]
    found = []
    for dw_name, pw_name in permutations(convolutions, 2):
        for dw_norm_name, pw_norm_name in permutations(norms, 2):
            names = (dw_name, dw_norm_name, pw_name, pw_norm_name)
            dw, dw_norm, pw, pw_norm = layers_at(module, names)
            group = dw.groups
            if (
                group == dw.in_channels == dw.out_channels == dw_norm.num_features == pw.in_channels
                and pw.out_channels == pw.groups == pw_norm.num_features == 1
            ):
                found.append(names)
    return found


def why_no_subspace(module: nn.Module) -> str | None:
    """What keeps a module from being a subspace; None if it has the pattern of one."""
    own = [*module._parameters, *module._buffers]
    if own:
        return f"it has {', '.join(own)} of its own"
    layers = _leaves(module)
    for name, layer in layers.items():
        problem = _problem(layer)
        if problem is not None:
            return f"{name} {problem}"
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers.values())
    norms = sum(isinstance(layer, _NORMS) for layer in layers.values())
    if (convolutions, norms) != (2, 2):
        return f"it has {convolutions} convolutions and {norms} BatchNorms, where the authors' code has 2 and 2"
    if not assignments(module):
        return "its convolutions and BatchNorms do not have the channels of a subspace"
    return None


def parts(module: nn.Module) -> dict[str, nn.Module] | None:
    """The subspaces of a module that may be a whole ULSAM, by their names inside it; None if it is not built like one.

    They are all alike and nothing else has weights. They lie in one ModuleList or Sequential, or are numbered children.
    """
    if type(module) in _CONTAINERS or module._parameters or module._buffers:
        return None
    children = {name: child for name, child in module._modules.items() if child is not None}
    for name, child in children.items():
        if isinstance(child, nn.ModuleList | nn.Sequential) and _has_state(child) and not resembles_subspace(child):
            found = {f"{name}.{i}": part for i, part in child._modules.items() if part is not None}
            others = [other for other in children.values() if other is not child]
            return found if _alike(list(found.values())) and not any(map(_has_state, others)) else None
    found = {name: child for name, child in children.items() if _has_state(child)}
    numbered = all(re.search(r"\d", name) for name in found) and len({re.sub(r"\d+", "", name) for name in found}) == 1
    return found if numbered and _alike(list(found.values())) else None


def possible_splits(module: nn.Module) -> list[int]:
    """How many subspaces may share the layers of this module: the candidates among its attributes."""
    values = (vars(module).get(name) for name in _SPLITS)
    return list(dict.fromkeys(value for value in values if type(value) is int and value > 1))


def _leaves(module: nn.Module) -> dict[str, nn.Module]:
    """The layers by their names inside the module, each once; those inside an nn.Sequential are listed one by one."""
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if type(child) is nn.Sequential:
            found |= {f"{name}.{inner}": layer for inner, layer in _leaves(child).items()}
        else:
            found[name] = child
    return found


def _problem(layer: nn.Module) -> str | None:
    """What keeps a layer from being part of a subspace; None if it may be."""
    if is_parametrized(layer):
        return "is parametrized"
    name = type(layer).__name__
    kind = type(layer)
    if kind is nn.Conv2d:
        plain = layer.kernel_size == layer.stride == (1, 1) and layer.padding in ((0, 0), "valid", "same")
        return _more_state(layer) if plain else f"is not a 1x1 convolution of stride 1: {layer}"
    if kind is nn.MaxPool2d:
        settings = tuple(_pair(getattr(layer, key)) for key in ("kernel_size", "stride", "padding", "dilation"))
        if settings == ((3, 3), (1, 1), (1, 1), (1, 1)) and not layer.ceil_mode and not layer.return_indices:
            return None
        return f"is not a 3x3 pool of stride 1: {layer}"
    if kind in _NORMS:
        affine = layer.weight is not None and layer.bias is not None
        return _more_state(layer) if affine else "has no weight or no bias"
    if kind in (nn.ReLU, nn.Softmax, nn.Identity):
        return None
    return f"is a {name}, which the authors' code does not have"


def _more_state(layer: nn.Module) -> str | None:
    """What the layer holds beyond what its class has."""
    known = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    more = [name for name in (*layer._parameters, *layer._buffers, *layer._modules) if name not in known]
    return f"has more than its own weights: {', '.join(more)}" if more else None


def _pair(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value, value)


def _has_state(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _alike(modules: list[nn.Module]) -> bool:
    """Whether these all resemble subspaces, of the same layers and sizes."""

    def signature(module: nn.Module) -> list[tuple[object, ...]]:
        sizes = ("in_channels", "out_channels", "num_features")
        return [(name, type(t), *(getattr(t, size, None) for size in sizes)) for name, t in _leaves(module).items()]

    first = [signature(module) for module in modules[:1]]
    return bool(modules) and all(resembles_subspace(m) and [signature(m)] == first for m in modules)
