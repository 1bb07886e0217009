"""The layers of the authors' subspaces: which of them the fused operator knows, and the tensors that they hold."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..state_dict import KEYS
from .module_tensors import described, is_batch_norm, is_frozen_norm, overridden, settings_of

RUNNING = ("running_mean", "running_var", "num_batches_tracked")

Kind = tuple[str, str]
"""A layer of a subspace, and the name of a tensor of it."""


def _in_order() -> tuple[Kind, ...]:
    kinds = [(layer, name) for layer, _, name in (key.partition(".") for key in KEYS.values())]
    return tuple(sorted(kinds, key=lambda kind: kind[1] in RUNNING))


KINDS = _in_order()
"""The parameters, then what the norms track, both in the order of the authors' state dict."""

PARAMETERS = sum(name not in RUNNING for _, name in KINDS)
"""How many kinds are parameters."""


def tensors_of(subspaces: Sequence[nn.Module]) -> list[Tensor | None]:
    """All subspaces' tensors of the first kind, then of the next, whether a parameter, a buffer or a property."""
    return [getattr(getattr(s, layer), name, None) for layer, name in KINDS for s in subspaces]


def rows(tensors: Sequence[Tensor | None], g: int) -> list[Sequence[Tensor | None]]:
    """Such tensors of g subspaces, a row for each kind."""
    return [tensors[i : i + g] for i in range(0, len(tensors), g)]


def differ(row: Sequence[Tensor | None]) -> bool:
    """Whether a kind's tensors cannot be one vector. Sizes are those of the layers: tracers make tensors of numbers."""
    return len({None if t is None else (t.dtype, t.device) for t in row}) > 1


def problem(subspaces: Sequence[nn.Module], layer: nn.Module) -> str | None:
    """Why the operator cannot stand for the layers of these subspaces of a whole layer; None if it can."""
    names = [f"subspaces.{i}." if s is not layer else "" for i, s in enumerate(subspaces)]
    for s, name in zip(subspaces, names, strict=True):
        reason = unknown(s, name)
        if reason is not None:
            return reason
        for part in _KNOWN:
            if overridden(s._modules[part]):
                return f"{name}{part} has hooks or a forward of its own"
        if s is not layer and overridden(s):
            return f"{name[:-1]} has hooks or a forward of its own"
    first: Any = subspaces[0]
    for part in _KNOWN:
        described = _settings(first._modules[part])
        for s, name in zip(subspaces[1:], names[1:], strict=True):
            if _settings(s._modules[part]) != described:
                return f"{name}{part} differs from {names[0]}{part}"
    if type(first.relu_dws) is not type(first.relu_point):
        return f"{names[0]}relu_dws differs from {names[0]}relu_point"
    for (part, tensor), row in zip(KINDS, rows(tensors_of(subspaces), len(subspaces)), strict=True):
        if differ(row):
            return f"{part}.{tensor} differs between subspaces in type or device"
    return None


def unknown(subspace: nn.Module, prefix: str) -> str | None:
    """A layer of the subspace that the operator does not know; None if it knows them all."""
    for name, known in _KNOWN.items():
        layer = subspace._modules.get(name)
        if layer is None or not known(layer):
            return f"{prefix}{name} is {described(layer)}"
    return None


def _settings(layer: Any) -> object:
    """What must be the same in all subspaces."""
    if not _norm(layer):
        return type(layer) is nn.Identity, getattr(layer, "in_channels", None)
    settings, frozen = settings_of(layer), is_frozen_norm(layer)
    count = None if frozen or settings[2] is not None else layer.num_batches_tracked
    if count is not None:  # without a momentum a batch weighs 1 / count; who traces cannot look at it
        count = None if count.is_meta or torch.compiler.is_compiling() else int(count)
    return *settings, frozen, getattr(layer, "process_group", ""), count


def _convolution(layer: Any) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer).forward is nn.Conv2d.forward
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
    )


def _depthwise(layer: Any) -> bool:
    return _convolution(layer) and layer.groups == layer.in_channels == layer.out_channels


def _pointwise(layer: Any) -> bool:
    return _convolution(layer) and layer.groups == layer.out_channels == 1


def _norm(layer: Any) -> bool:
    return is_batch_norm(layer) or is_frozen_norm(layer)


def _activation(layer: Any) -> bool:
    return type(layer) in (nn.ReLU, nn.Identity)


def _pool(layer: Any) -> bool:
    if type(layer) is not nn.MaxPool2d or layer.ceil_mode or layer.return_indices:
        return False
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return all(value in (size, (size, size)) for value, size in zip(settings, (3, 1, 1, 1), strict=True))


def _softmax(layer: Any) -> bool:
    return type(layer) is nn.Softmax and layer.dim in (2, -1)


_KNOWN = {
    "conv_dws": _depthwise, "bn_dws": _norm, "relu_dws": _activation, "maxpool": _pool,
    "conv_point": _pointwise, "bn_point": _norm, "relu_point": _activation, "softmax": _softmax,
}  # fmt: skip

KNOWN_TENSORS = (_depthwise, _norm, _pointwise, _norm)
"""Whether the operator knows a depthwise convolution, its norm, a pointwise convolution, its norm."""
