"""Where ULSAMs stand in a backbone: checked, and put there."""

from collections.abc import Mapping, Sequence
from numbers import Integral

from torch import nn

from .. import modules, upstream
from ..ops import checks
from .blocks import Block, ConvNormActivation

ATTENTION = ("paper", "upstream")

Layer = ConvNormActivation | Block


def check_places(name: str, places: object, layers: int) -> dict[int, object]:
    """A copy of {layer number: num_splits}, in ascending order of existing layers 1 to `layers`; None is empty."""
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


def check_attention(attention: object) -> None:
    if attention not in ATTENTION:
        raise ValueError(f'attention must be "paper" or "upstream", got {attention!r}')


def plan(
    layers: Sequence[Layer], insert: object, replace: object, attention: object
) -> tuple[dict[int, int], dict[int, int]]:
    """insert and replace as dicts of layer number: num_splits that these layers can take.

    Raises:
        TypeError, ValueError: they are no such dicts; a layer that is none, cannot be replaced, has a number of
            channels that num_splits does not divide, or is in both; an attention that is none of ATTENTION.
    """
    check_attention(attention)
    found: list[dict[int, int]] = []
    for name, places in (("insert", insert), ("replace", replace)):
        found.append({})
        for number, num_splits in check_places(name, places, len(layers)).items():
            layer = layers[number - 1]
            if name == "replace" and not layer.replaceable:
                possible = ", ".join(str(k) for k, other in enumerate(layers, start=1) if other.replaceable)
                raise ValueError(
                    f"replace names layer {number}, whose input and output differ in width or size; "
                    f"layers that can be replaced: {possible or 'none'}"
                )
            try:
                found[-1][number] = checks.check_num_splits(num_splits, layer.out_channels, "its width")
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}, layer {number}: {error}") from None
    both = sorted(found[0].keys() & found[1].keys())
    if both:
        raise ValueError(f"insert and replace both name layer {both[0]}: a ULSAM cannot follow on a ULSAM")
    return found[0], found[1]


def new_ulsam(channels: int, num_splits: int, attention: str) -> modules.ULSAM:
    if attention == "upstream":
        return upstream.ULSAM(channels, num_splits=num_splits)
    return modules.ULSAM(channels, num_splits)


def place(features: nn.Sequential, insert: dict[int, int], replace: dict[int, int], attention: str) -> None:
    """Put ULSAMs into the layers, by a plan that holds for them; in ascending order, as they draw random numbers."""
    for number, num_splits in sorted((insert | replace).items()):
        layer = features[number - 1]
        assert isinstance(layer, Layer)
        ulsam = new_ulsam(layer.out_channels, num_splits, attention)
        if number in replace:
            features[number - 1] = ulsam
        else:
            layer.add_module("ulsam", ulsam)
