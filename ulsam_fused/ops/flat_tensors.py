"""The tensors of many small layers as vectors, one for each kind of tensor, which the operator takes.

    flat      the layers' tensors are parts of the vectors: nothing is moved
    joined    they are not, or something traces the call: torch.cat joins them, and running statistics are copied back

A part of a vector is a tensor with a storage of its own over the vector's memory, had by DLPack. So whoever saves,
shares or counts tensors sees those of the small layers, a write into one of them reaches the vector, and a kernel that
updates the vector reaches them. Whoever gives a layer other memory (`.data = ...`, sharding, `functional_call`) ends
this: the next call sees other addresses, and joins.
"""

import multiprocessing
from collections.abc import Sequence
from itertools import chain
from operator import getitem
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from . import tracing
from .checks import PLAIN
from .module_tensors import HOOKS, SETTINGS, Norm, Settings
from .subspace_layers import KINDS, PARAMETERS, RUNNING, differ, rows, tensors_of, unknown

_DEVICES = ("cpu", "cuda", "xpu")  # where DLPack serves parts of a vector


class Vectors(NamedTuple):
    """What `norm_attention` takes."""

    dw_weight: Tensor  # [C]
    dw_bias: Tensor | None  # [C]
    dw_norm: Norm  # of C channels
    pw_weight: Tensor  # [C]
    pw_bias: Tensor | None  # [g]
    pw_norm: Norm  # of g channels


def vectors_of(kinds: Sequence[Any], dw: Settings, pw: Settings) -> Vectors:
    """From a vector for each of KINDS and the settings of both norms."""
    w, b, gamma1, beta1, v, c, gamma2, beta2, mean1, var1, count1, mean2, var2, count2 = kinds
    return Vectors(
        w, b, Norm(gamma1, beta1, mean1, var1, *dw, count1), v, c, Norm(gamma2, beta2, mean2, var2, *pw, count2)
    )


class Flat(NamedTuple):
    """Vectors, one for each of KINDS (None where a layer has none), and where their parts lie, as `tensors_of`."""

    vectors: list[Tensor | None]
    addresses: list[int]


def addresses_of(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where they lie; 0 for those that lie nowhere."""
    return [0 if t is None else _address(t) for t in tensors]


def _address(t: Tensor) -> int:
    try:
        return t.data_ptr()
    except RuntimeError:  # a wrapper without memory
        return 0


def flatten(subspaces: Sequence[nn.Module]) -> Flat | None:
    """Make all tensors of a kind the parts of one vector; their values stay, and so do the Parameter objects.

    None, and nothing is changed, where a tensor cannot be a part: on the meta device, of a subclass, shared with other
    processes or between layers.
    """
    if any(unknown(s, "") for s in subspaces):
        return None
    tensors = tensors_of(subspaces)
    present = [t for t in tensors if t is not None]
    kinds = rows(tensors, len(subspaces))
    if len({id(t) for t in present}) < len(present) or not all(map(_can_be_a_part, present)) or any(map(differ, kinds)):
        return None
    vectors: list[Tensor | None] = []
    with torch.inference_mode(False), torch.no_grad():
        for row in kinds:
            vectors.append(_join(row))
            for t, part in zip(row, _parts(vectors[-1], len(row)), strict=True):
                if t is not None:
                    t.data = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(part)).view(t.shape)  # type: ignore[attr-defined]
    return Flat(vectors, addresses_of(tensors))


def _can_be_a_part(t: Tensor) -> bool:
    return (
        type(t) in PLAIN
        and t.is_leaf
        and t.layout is torch.strided
        and t.device.type in _DEVICES
        and not (t.is_neg() or t.is_conj() or t.is_inference())
        and not (t.device.type == "cpu" and t.is_shared())
    )


def _join(row: Sequence[Tensor | None]) -> Tensor | None:
    return None if row[0] is None else torch.cat([cast(Tensor, t).reshape(-1) for t in row])


def _parts(vector: Tensor | None, g: int) -> Sequence[Tensor | None]:
    return [None] * g if vector is None else vector.split(vector.numel() // g)


def joined(tensors: Sequence[Tensor | None], g: int) -> list[Tensor | None]:
    """A new vector for each kind, differentiable."""
    return [_join(row) for row in rows(tensors, g)]


def copy_back(
    vectors: Sequence[Tensor | None], tensors: Sequence[Tensor | None], g: int, layers: Sequence[str]
) -> None:
    """Write what a call has updated in new vectors into the running statistics of these layers."""
    for (layer, name), vector, row in zip(KINDS, vectors, rows(tensors, g), strict=True):
        if layer in layers and name in RUNNING:
            for t, part in zip(row, _parts(vector, g), strict=True):
                if t is not None and part is not None:
                    t.copy_(part.view(t.shape))


def came_from_another_process(module: nn.Module) -> bool:
    """Whether tensors of a module that was just unpickled may be shared with the process that sent them."""
    return multiprocessing.parent_process() is not None and any(t.is_shared() for t in module.parameters())


class Join(torch.autograd.Function):
    """(vectors, x or None, *their parts) -> (x or None, *vectors). Nothing is moved: the parts lie in the vectors.

    It saves the parts, so PyTorch notices where one is written into between forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, vectors: list[Tensor], x: Tensor | None, *parts: Tensor) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(*parts)
        ctx.set_materialize_grads(False)
        found = [v.detach() for v in vectors]
        if x is not None:
            ctx.mark_non_differentiable(*found)
        return x, *found

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        g = len(parts) // len(gradients)
        found: list[Tensor | None] = []
        for i, gradient in enumerate(gradients):
            if gradient is None:
                found += [None] * g
            else:
                shape = parts[i * g].shape
                pieces = gradient.split(gradient.numel() // g)
                found += pieces if len(shape) == 1 else [piece.view(shape) for piece in pieces]
        return None, dx, *found


def differentiable(
    x: Tensor, vectors: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """x, and the vectors as functions of the parameters, which are their parts."""
    learns = any([p.requires_grad for p in parameters])
    if not (torch.is_grad_enabled() and (learns or x.requires_grad)):
        return x, vectors
    present = [v for v in vectors[:PARAMETERS] if v is not None]
    # where no parameter learns, x passes through: a write into a parameter before backward must be noticed
    through, *found = Join.apply(present, None if learns else x, *parameters)  # type: ignore[no-untyped-call]
    if len(found) < PARAMETERS:
        parts = iter(found)
        found = [None if v is None else next(parts) for v in vectors[:PARAMETERS]]
    return x if learns else through, [*found, *vectors[PARAMETERS:]]


class Seen(NamedTuple):
    """Layers that were found flat, so that the next call sees in a few microseconds whether they still are."""

    layer: dict[str, Any]  # _modules of the whole layer; a replica has others
    first: nn.Module  # subspace
    vectors: list[Tensor | None]
    holders: list[Any]  # _parameters or _buffers that hold the tensors, as `tensors_of` without those that are None
    names: list[str]  # under which they hold them
    addresses: list[int]
    parameters: int  # how many of them are parameters
    absent: list[tuple[Any, str]]  # where there is None
    containers: list[Any]  # _modules of the layer and of what is inside
    children: list[nn.Module]  # their values
    attributes: list[Any]  # __dict__ of all that is inside
    sizes: list[int]  # a `forward` of its own is one attribute more
    hooks: list[Any]
    dw_norms: list[Any]  # __dict__ of each
    pw_norms: list[Any]
    made: dict[tuple[Settings, Settings], Vectors]  # what calls without gradients take, by both norms' settings


_values, _data_ptr = dict.values, Tensor.data_ptr


def seen(layer: nn.Module, subspaces: Sequence[nn.Module], flat: Flat) -> Seen | None:
    """Of a layer that has no `problem`, and whose tensors are parts; None where other modules hold the tensors."""
    held: list[tuple[Any, str]] = []
    for kind, name in KINDS:
        for s in subspaces:
            module = cast(nn.Module, s._modules[kind])
            held.append((module._buffers if name in RUNNING else module._parameters, name))
    if not all(name in holder for holder, name in held):
        return None
    present = [(holder, name) for holder, name in held if holder[name] is not None]
    containers = [layer._modules, *(m._modules for m in (*layer.children(), *subspaces) if m._modules)]
    inside = [m for s in subspaces for m in s.modules() if m is not layer]
    return Seen(
        layer._modules,
        subspaces[0],
        flat.vectors,
        [holder for holder, _ in present],
        [name for _, name in present],
        [address for address in flat.addresses if address],
        sum(name not in RUNNING for _, name in present),
        [(holder, name) for holder, name in held if holder[name] is None],
        containers,
        cast(list[nn.Module], list(chain.from_iterable(map(_values, containers)))),
        [m.__dict__ for m in inside],
        [len(m.__dict__) for m in inside],
        [getattr(m, kind) for m in inside for kind in HOOKS],
        [cast(nn.Module, s._modules["bn_dws"]).__dict__ for s in subspaces],
        [cast(nn.Module, s._modules["bn_point"]).__dict__ for s in subspaces],
        {},
    )


def still_flat(found: Seen, layer: nn.Module, x: Tensor) -> tuple[Tensor, Vectors] | None:
    """x and the vectors of this call, if nothing has changed; None tells to look closely."""
    if found.layer is not layer._modules or tracing.way_of(x) != "direct":
        return None
    try:
        tensors = list(map(getitem, found.holders, found.names))
        if (
            list(map(_data_ptr, tensors)) != found.addresses
            or list(chain.from_iterable(map(_values, found.containers))) != found.children
            or any(found.hooks)
            or list(map(len, found.attributes)) != found.sizes
        ):
            return None
        dw, pw = list(map(SETTINGS, found.dw_norms)), list(map(SETTINGS, found.pw_norms))
    except (KeyError, TypeError, RuntimeError):  # gone, None, or without memory
        return None
    first, second = dw[0], pw[0]
    if dw.count(first) != len(dw) or pw.count(second) != len(pw) or first[2] is None or second[2] is None:
        return None
    for holder, name in found.absent:
        if holder[name] is not None:
            return None
    if torch.is_grad_enabled():
        x, vectors = differentiable(x, found.vectors, tensors[: found.parameters])
        return x, vectors_of(vectors, first, second)
    key = first, second
    if key not in found.made:
        found.made[key] = vectors_of(found.vectors, first, second)
    return x, found.made[key]
