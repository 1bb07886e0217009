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
from operator import getitem, is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]
from torch.utils.hooks import RemovableHandle

from ..torch_backend.primitives import without_autocast
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
    if any(len({t.numel() for t in row if t is not None}) > 1 for row in kinds):
        return None
    if len({id(t) for t in present}) < len(present) or not all(map(_can_be_a_part, present)) or any(map(differ, kinds)):
        return None
    vectors: list[Tensor | None] = []
    with torch.inference_mode(False), torch.no_grad():
        for row in kinds:
            vectors.append(_join(row))
            for t, part in zip(row, _parts(vectors[-1], len(row)), strict=True):
                if t is not None and part is not None:
                    t.data = from_dlpack(to_dlpack(part)).view(t.shape)
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
    if row[0] is None:
        return None
    with without_autocast(row[0]):  # under which torch.cat refuses 16 bits of another type than its own
        return torch.cat([cast(Tensor, t).reshape(-1) for t in row])


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
    learns = any([p.requires_grad for p in parameters])  # noqa: C419  a generator takes a microsecond
    if not (torch.is_grad_enabled() and (learns or x.requires_grad)):
        return x, vectors
    present = [v for v in vectors[:PARAMETERS] if v is not None]
    # where no parameter learns, x passes through: a write into a parameter before backward must be noticed
    through, *found = Join.apply(present, None if learns else x, *parameters)  # type: ignore[no-untyped-call]
    if len(found) < PARAMETERS:
        parts = iter(found)
        found = [None if v is None else next(parts) for v in vectors[:PARAMETERS]]
    return x if learns else through, [*found, *vectors[PARAMETERS:]]


class Seen:
    """A layer that was found flat, so that the next call sees in a few microseconds whether it still is.

    Looked at are the tensors and their addresses, the modules inside, their hooks, how many attributes they have (a
    `forward` of their own is one more), and the norms' settings.
    """

    def __init__(self, layer: nn.Module, subspaces: Sequence[nn.Module], flat: Flat) -> None:
        """Of a layer that has no `problem`, and whose tensors are parts of the vectors."""
        held = [(_holder(s, layer_name, name), name) for layer_name, name in KINDS for s in subspaces]
        places = list(zip(held, flat.addresses, strict=True))
        present = [(place, address) for place, address in places if address and place[1] != _COUNT]
        counts = [(place, address) for place, address in places if address and place[1] == _COUNT]
        inside = [m for s in subspaces for m in s.modules() if m is not layer]
        self.layer = layer._modules  # a replica has others
        self.first = subspaces[0]
        self.vectors = flat.vectors
        self.holders, self.names = [holder for (holder, _), _ in present], [name for (_, name), _ in present]
        self.tensors = [holder[name] for holder, name in zip(self.holders, self.names, strict=True)]
        self.addresses = [address for _, address in present]
        self.parameters = sum(name not in RUNNING for name in self.names)
        self.counters, self.count_addresses = [holder for (holder, _), _ in counts], [address for _, address in counts]
        self.absent = [place for place, address in places if not address]
        self.containers = [layer._modules, *(m._modules for m in (*layer.children(), *subspaces))]
        self.children = [dict(container) for container in self.containers]
        self.attributes = [m.__dict__ for m in inside]
        self.sizes = [len(attributes) for attributes in self.attributes]
        self.hooks = [getattr(m, kind) for m in inside for kind in HOOKS]
        self.hooks_ever = RemovableHandle.next_id
        self.dw_norms: list[Any] = [s._modules["bn_dws"].__dict__ for s in subspaces]
        self.pw_norms: list[Any] = [s._modules["bn_point"].__dict__ for s in subspaces]
        self.made: dict[tuple[Settings, Settings], Vectors] = {}  # what calls without gradients take
        self.accepted: set[object] = set()  # shapes, types and devices of x that were found valid

    def flat(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Vectors] | None:
        """x and the vectors of this call, if nothing has changed; None tells to look closely."""
        if self.layer is not layer._modules or tracing.way_of((x,)) != "direct":
            return None
        try:
            tensors = list(map(getitem, self.holders, self.names))
            if (
                not all(map(is_, tensors, self.tensors))
                or list(map(_data_ptr, tensors)) != self.addresses
                or self.containers != self.children
                or list(map(len, self.attributes)) != self.sizes
            ):
                return None
            dw, pw = list(map(SETTINGS, self.dw_norms)), list(map(SETTINGS, self.pw_norms))
            first, second = dw[0], pw[0]
            if (first[0] or second[0]) and [c[_COUNT].data_ptr() for c in self.counters] != self.count_addresses:
                return None
        except (KeyError, TypeError, AttributeError, RuntimeError):  # gone, None, or without memory
            return None
        if dw.count(first) != len(dw) or pw.count(second) != len(pw) or first[2] is None or second[2] is None:
            return None
        if self.hooks_ever != RemovableHandle.next_id:
            if any(self.hooks):
                return None
            self.hooks_ever = RemovableHandle.next_id
        for holder, name in self.absent:
            if holder[name] is not None:
                return None
        if torch.is_grad_enabled():
            x, vectors = differentiable(x, self.vectors, tensors[: self.parameters])
            return x, vectors_of(vectors, first, second)
        key = first, second
        if key not in self.made:
            self.made[key] = vectors_of(self.vectors, first, second)
        return x, self.made[key]


_data_ptr = Tensor.data_ptr
_COUNT = "num_batches_tracked"


def _holder(subspace: nn.Module, layer: str, name: str) -> dict[str, Any]:
    """Where a layer holds a tensor; a place without it, if it holds it elsewhere."""
    module = cast(nn.Module, subspace._modules[layer])
    return module._parameters if name in module._parameters else module._buffers
