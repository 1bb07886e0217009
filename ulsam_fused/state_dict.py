"""Two forms of a state dict: the authors', with layers for each subspace, and the flat one, of one vector for all.

A layer of one form loads the other, too: hooks join or cut. What a checkpoint lacks or has too much of is reported
under the authors' names.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# name here -> name within a subspace, in the order of the authors' state dict
KEYS = {
    "dw_weight": "conv_dws.weight",
    "dw_bias": "conv_dws.bias",
    **{f"dw_norm.{name}": f"bn_dws.{name}" for name in _NORM},
    "pw_weight": "conv_point.weight",
    "pw_bias": "conv_point.bias",
    **{f"pw_norm.{name}": f"bn_point.{name}" for name in _NORM},
}


def accept_authors_keys(layer: nn.Module) -> None:
    """From now on the flat layer loads state dicts with the authors' keys, too."""
    layer.register_load_state_dict_pre_hook(_from_authors)


def accept_flat_keys(layer: nn.Module) -> None:
    """From now on the layer with the authors' names loads flat state dicts, too."""
    layer.register_load_state_dict_pre_hook(_from_flat)


def authors_shape(name: str, group: int) -> tuple[int, ...]:
    """The shape on disk of one subspace's part of a flat tensor; group: G."""
    if name.endswith("num_batches_tracked"):
        return ()
    if name == "dw_weight":
        return (group, 1, 1, 1)
    if name == "pw_weight":
        return (1, group, 1, 1)
    return (group,) if name.startswith("dw_") else (1,)


def _subspaces(layer: Any, prefix: str) -> Iterator[str]:
    """What stands before each subspace's keys."""
    for i in range(layer.num_splits):
        yield prefix + layer.subspace_prefix.format(i)


def _from_flat(layer: Any, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    for name, key in KEYS.items():
        t = state_dict.pop(prefix + name, None)
        if t is not None:
            shape = authors_shape(name, layer.channels // layer.num_splits)
            for subspace, part in zip(_subspaces(layer, prefix), _parts(t, layer.num_splits), strict=True):
                state_dict[subspace + key] = part.reshape(shape)


def _from_authors(
    layer: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    own = _own(layer)
    given = any(subspace + KEYS[name] in state_dict for subspace in _subspaces(layer, prefix) for name in own)
    if not given:
        return  # its own keys, or none
    has_counts = local_metadata.get("version") is not None  # PyTorch, too, does not miss them in older files
    for name, t in own.items():
        shape = authors_shape(name, layer.channels // layer.num_splits)
        parts, counts = [], set()
        for subspace, own_part in zip(_subspaces(layer, prefix), _parts(t, layer.num_splits), strict=True):
            key = subspace + KEYS[name]
            part = state_dict.pop(key, None)
            if part is None and (shape or has_counts):
                missing_keys.append(key)
            if part is not None and tuple(part.shape) != shape:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {part.shape} from checkpoint, the shape in "
                    f"current model is {torch.Size(shape)}."
                )
                part = None
            if part is not None and not shape and not part.is_meta:
                counts.add(int(part))
            parts.append(own_part if part is None else part)
        if len(counts) > 1:
            error_msgs.append(f"{prefix}{KEYS[name]} differs between subspaces, which share one count here.")
        state_dict[prefix + name] = _join(parts, t) if shape else parts[0]


def _parts(t: Tensor, num_splits: int) -> Sequence[Tensor]:
    """Every subspace's part of a flat tensor; a count is every subspace's."""
    return t.chunk(num_splits) if t.dim() else [t] * num_splits


def _own(layer: Any) -> dict[str, Tensor]:
    """The layer's persistent tensors that the authors' code has too, by their names here."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {name: tensors[name].detach() for name in KEYS if name in tensors}


def _join(parts: list[Tensor], own: Tensor) -> Tensor:
    """All subspaces' parts as one vector; parts of the layer's own stand for what the checkpoint lacks."""
    if len({(part.dtype, part.device) for part in parts}) > 1:
        if own.is_meta:
            return own
        parts = [part.to(own) for part in parts]
    return torch.cat([part.reshape(-1) for part in parts])
