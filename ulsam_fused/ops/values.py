"""What a tensor is besides its memory, and what autocast makes of parameters.

A direct call hands memory to a kernel. A negative bit, a zero tensor without memory, a wrapper of a transform or a
subclass say that the value is another one. PyTorch's dispatcher knows all of them.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .checks import HALVES, PLAIN

_usual_keys: set[int] = set()  # sets of dispatch keys, as bits: those of a device's tensors are few


@functools.cache
def _strange_keys(device: str) -> int:
    """The dispatch keys, as bits, that a tensor on such a device with its value in its memory never has.

    Each device has some of its own, such as that of its autocast.
    """
    usual: int = torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr()
    above = usual & (usual - 1)  # the lowest bit says which device it is, the next that it is dense
    return ~(usual | ((above & -above) - 1))


def unusual(t: Tensor | None) -> bool:
    """Whether the value of t is anything but its memory, or it has none."""
    if t is None:
        return False
    if type(t) not in PLAIN:
        return True
    found: int = torch._C._dispatch_keys(t).raw_repr()
    if found in _usual_keys:  # one look for all that is asked here
        return False
    if t.is_meta or found & _strange_keys(t.device.type) != 0:
        return True
    _usual_keys.add(found)
    return False


def negated(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one of these, each of a plain type, has the negative bit: what every call can afford to ask."""
    for t in tensors:  # noqa: SIM110  a generator takes a microsecond
        if t is not None and t.is_neg():
            return True
    return False


def settled(x: Any, convolutions: list[Any], norms: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Arguments that were not plainly valid, their values in their memory where that takes no more than a copy.

    Where autocast would cast what convolutions and norms read, so that their types go together, they come in float32.
    The checks look at the rest, and the dispatcher.
    """
    x, *parameters = map(_settled, (x, *convolutions, *norms))
    convolutions, norms = parameters[: len(convolutions)], parameters[len(convolutions) :]
    if all(t is None or isinstance(t, Tensor) for t in (x, *parameters)) and _autocast_casts(x, convolutions, norms):
        convolutions, norms = ([None if p is None else p.float() for p in group] for group in (convolutions, norms))
    return x, convolutions, norms


def in_memory(t: Tensor | None) -> Tensor | None:
    """A gradient that arrives where only a backend itself can go on."""
    t = _settled(t)
    if type(t) in PLAIN and unusual(t):
        raise RuntimeError("statistics that processes share cannot be differentiated for a batch of gradients")
    return t


def _settled(t: Any) -> Any:
    if type(t) not in PLAIN or torch.compiler.is_compiling():
        return t
    return t.clone() if t.is_neg() or t._is_zerotensor() else t


def contiguous(t: Tensor | None) -> Tensor | None:
    """A settled running statistic as kernels write it."""
    return t if t is None or type(t) not in PLAIN else t.contiguous()


def _autocast_casts(x: Tensor, convolutions: list[Tensor | None], norms: list[Tensor | None]) -> bool:
    """Whether types differ where PyTorch's layers compute, since autocast casts them. It leaves float64 alone."""
    if not torch.is_autocast_enabled(x.device.type):
        return False
    of_convolutions, of_norms = ({p.dtype for p in group if p is not None} for group in (convolutions, norms))
    fit = {x.dtype} if of_convolutions == {x.dtype} else {torch.float32}
    beside = fit | ({torch.float32} if fit <= set(HALVES) else set())
    if of_convolutions == fit and of_norms <= beside and (fit == {x.dtype} or x.dtype in HALVES):
        return False
    return (of_convolutions | of_norms | {x.dtype}) <= {*HALVES, torch.float32}
