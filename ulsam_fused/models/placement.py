"""Check where ULSAMs shall stand in a backbone, and put them there."""

from collections.abc import Mapping, Sequence
from numbers import Integral

from torch import nn

from .. import modules, upstream
from .._names import ATTENTION
from ..ops import checks
from .blocks import Block, ConvNormActivation

Layer = ConvNormActivation | Block


def _check_places(name: str, places: object, layers: int) -> dict[int, object]:
    """A copy of {layer number: num_splits} in ascending order; empty for None. Layers are numbered 1 to `layers`."""
    if places is None:
        return {}
    if not isinstance(places, Mapping):
        raise TypeError(f"{name} must be a dict of layer number: num_splits, got {type(places).__name__}")
    for number in places:
        if isinstance(number, bool) or not isinstance(number, Integral):
            kind = type(number).__name__
            raise TypeError(f"{name} must have integers as layer numbers, got {number!r} of type {kind}")
        if not 1 <= int(number) <= layers:
            raise ValueError(f"{name} names layer {number}; the layers are 1, the stem, to {layers}")
    return {int(number): places[number] for number in sorted(places)}


def plan(
    layers: Sequence[Layer], insert: object, replace: object, attention: object
) -> tuple[dict[int, int], dict[int, int]]:
    """insert and replace, checked for these layers, as dicts {layer number: num_splits}.

    Raises:
        TypeError, ValueError: not such a dict; a layer that does not exist, cannot be replaced or is in both dicts;
            a num_splits that does not divide the layer's channels; an attention that is not in ATTENTION.
    """
    if attention not in ATTENTION:
        raise ValueError(f'attention must be "paper" or "upstream", got {attention!r}')
    inserted = _check_splits("insert", _check_places("insert", insert, len(layers)), layers)
    replaced = _check_places("replace", replace, len(layers))
    for number in replaced:
        if not layers[number - 1].replaceable:
            possible = ", ".join(str(k) for k, other in enumerate(layers, start=1) if other.replaceable)
            raise ValueError(
                f"replace names layer {number}, whose input and output differ in width or size; "
                f"layers that can be replaced: {possible or 'none'}"
            )
    for number in sorted(inserted.keys() & replaced.keys()):
        raise ValueError(f"insert and replace both name layer {number}: a ULSAM cannot follow on a ULSAM")
    return inserted, _check_splits("replace", replaced, layers)


def _check_splits(name: str, places: dict[int, object], layers: Sequence[Layer]) -> dict[int, int]:
    found = {}
    for number, num_splits in places.items():
        try:
            found[number] = checks.check_num_splits(num_splits, layers[number - 1].out_channels, "its width")
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}, layer {number}: {error}") from None
    return found


def place(features: nn.Sequential, insert: dict[int, int], replace: dict[int, int], attention: str) -> None:
    """Put ULSAMs into the layers as planned, in ascending order, because they draw random numbers."""
    for number, num_splits in sorted((insert | replace).items()):
        layer = features[number - 1]
        assert isinstance(layer, Layer)
        ulsam: modules.ULSAM
        if attention == "upstream":
            ulsam = upstream.ULSAM(layer.out_channels, num_splits=num_splits)
        else:
            ulsam = modules.ULSAM(layer.out_channels, num_splits)
        if number in replace:
            features[number - 1] = ulsam
        else:
            layer.add_module("ulsam", ulsam)
