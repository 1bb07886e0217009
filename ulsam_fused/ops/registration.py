"""The operators that PyTorch sees: `forward`, `backward`, `norm_forward` and `norm_backward` of `ulsam_fused`.

They are functional and of fixed arity. Compilers, exporters and dispatch modes call them, and their fakes promise
shapes, types and strides. A plain eager call goes to the backend itself (`Route.way`), which may update running
statistics and talk to other processes, too. Options are taken apart here and nowhere else: a schema needs plain values.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..kernels.contract import (
    Exchange,
    Forward,
    Gradients,
    Group,
    Inputs,
    NormBackend,
    NormForward,
    NormGradients,
    NormInputs,
    NormSaved,
    Options,
)
from ..torch_backend import norm_backend as torch_backend
from . import plain, values
from .routes import Route
from .tracing import Way


class Cancelled(NamedTuple):
    """Biases of convolutions before a norm with statistics of the batch. They change nothing, and their gradient is 0,
    which tells DistributedDataParallel and optimizers that they took part."""

    dw_bias: Tensor | None  # [C]
    pw_bias: Tensor | None  # [g]


def forward(inputs: Inputs, options: Options, route: Route) -> Forward:
    """The general form; see `contract.Backend`."""
    if route.way == "operator":
        return Forward(*torch.ops.ulsam_fused.forward.default(*inputs, *options))
    if route.way == "plain":
        return plain.forward(inputs, options)
    return backends.door(route.backend, inputs.x.device).forward(inputs, options)


def backward(
    dy: Tensor | None, d_attention: Tensor | None, inputs: Inputs, z: Tensor, lse: Tensor, options: Options, way: Way
) -> Gradients:
    """Its gradients, on the way that `tracing.way_back` gives."""
    if way == "operator":
        op = torch.ops.ulsam_fused.backward.default
        return Gradients(*op(dy, d_attention, *inputs, z, lse, *options))
    return backends.door(options.backend, inputs.x.device).backward(dy, d_attention, inputs, z, lse, options)


def norm_forward(
    inputs: NormInputs, cancelled: Cancelled, options: Options, exchange: Exchange, route: Route
) -> NormForward:
    """The form with norms; see `contract.NormBackend`. Only the way "direct" heeds `exchange`."""
    if route.way == "operator":
        return NormForward(*torch.ops.ulsam_fused.norm_forward.default(*inputs, *cancelled, *options))
    return _norm_door(options.backend, inputs.x).norm_forward(inputs, options, exchange)


def norm_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: NormInputs,
    saved: NormSaved,
    options: Options,
    group: Group | None,
    way: Way,
) -> NormGradients:
    """Its gradients, on the way that `tracing.way_back` gives. Only a backend itself knows other processes."""
    if way == "operator":
        if group is None:
            op = torch.ops.ulsam_fused.norm_backward.default
            return NormGradients(*op(dy, d_attention, *inputs, *saved, *options))
        dy, d_attention = values.in_memory(dy), values.in_memory(d_attention)
    door = _norm_door(options.backend, inputs.x)
    return door.norm_backward(dy, d_attention, inputs, saved, options, group)


def moments(x: Tensor, group: Group | None, route: Route) -> Tensor:
    """Mean, biased variance and count of every channel of x: [3, C]."""
    if route.way != "direct":
        return torch.stack(plain.moments(x)) if group is None else torch_backend.moments(x, group)
    return _norm_door(route.backend, x).moments(x, group)


def _norm_door(backend: str, x: Tensor) -> NormBackend:
    # an empty batch still takes part in what processes exchange; it needs no kernel
    return backends.norm_door("torch" if x.numel() == 0 else backend, x.device)


# --- what the operators run -----------------------------------------------------------------------------------------


def filled(t: Tensor | None, like: Tensor) -> Tensor:
    """An operator's outputs are tensors, and no two of them are one."""
    return like.new_empty(0) if t is None else t


class _Saved(NamedTuple):
    z: Tensor
    lse: Tensor


def grouped(flat: tuple[Any, ...], *kinds: type[tuple[Any, ...]]) -> list[Any]:
    """An operator's arguments as the named tuples that they are the fields of, one after the other."""
    rest = iter(flat)
    return [kind(*itertools.islice(rest, len(kind._fields))) for kind in kinds]  # type: ignore[attr-defined]


def _run_forward(*flat: Any) -> tuple[Tensor, ...]:
    inputs, options = grouped(flat, Inputs, Options)
    found = backends.door(backends.requested(options.backend), inputs.x.device).forward(inputs, options)
    return found.y, filled(found.attention, found.z), found.z, filled(found.lse, found.z)


def _run_backward(dy: Tensor | None, d_attention: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    inputs, saved, options = grouped(flat, Inputs, _Saved, Options)
    door = backends.door(backends.requested(options.backend), inputs.x.device)
    found = door.backward(dy, d_attention, inputs, saved.z, saved.lse, options)
    return tuple(filled(t, inputs.scale) for t in found)


def _run_norm_forward(*flat: Any) -> tuple[Tensor, ...]:
    inputs, _, options = grouped(flat, NormInputs, Cancelled, Options)
    found = _norm_door(backends.requested(options.backend), inputs.x).norm_forward(inputs, options, Exchange())
    return tuple(filled(t, found.z) for t in found)


def _run_norm_backward(dy: Tensor | None, d_attention: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    inputs, saved, options = grouped(flat, NormInputs, NormSaved, Options)
    door = _norm_door(backends.requested(options.backend), inputs.x)
    return tuple(filled(t, inputs.dw) for t in door.norm_backward(dy, d_attention, inputs, saved, options, None))


# --- and what their fakes promise -------------------------------------------------------------------------------------


def _promise_forward(*flat: Any) -> tuple[Tensor, ...]:
    inputs, options = grouped(flat, Inputs, Options)
    y, attention, z = _promised_maps(inputs.x, options)
    return y, attention, z, z.new_empty((z.shape[0], options.num_splits) if options.need_lse else 0)


def _promise_norm_forward(*flat: Any) -> tuple[Tensor, ...]:
    inputs, _, options = grouped(flat, NormInputs, Cancelled, Options)
    y, attention, z = _promised_maps(inputs.x, options)
    n, c, _, _ = inputs.x.shape
    first = z.new_empty(0) if inputs.gamma1 is None else z.new_empty(5, c)
    return y, attention, z, z.new_empty(n, options.num_splits), first, z.new_empty(6, options.num_splits)


def _promised_maps(x: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    n, _, h, w = x.shape
    z = x.new_empty((n, options.num_splits, h, w), dtype=torch.promote_types(x.dtype, torch.float32))
    attention = torch.empty_like(z) if options.need_attention else z.new_empty(0)
    return torch.empty_like(x, dtype=options.out_dtype), attention, z


def _promise_backward(_dy: Tensor | None, _d_attention: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    return _promised_gradients(*grouped(flat, Inputs))


def _promise_norm_backward(_dy: Tensor | None, _d_attention: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    return _promised_gradients(*grouped(flat, NormInputs))


def _promised_gradients(inputs: Inputs | NormInputs) -> tuple[Tensor, ...]:
    x, weight, *others = inputs
    absent_or_like = [weight.new_empty(0) if p is None else p.new_empty(p.shape) for p in (weight, *others)]
    return torch.empty_like(x), *absent_or_like


LIBRARY = torch.library.Library("ulsam_fused", "DEF")
_GENERAL = "Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor? b"
_NORM = "Tensor x, Tensor dw, Tensor? gamma1, Tensor? beta1, Tensor pw, Tensor? gamma2, Tensor? beta2"
_CANCELLED = "Tensor? dw_bias, Tensor? pw_bias"
_ARRIVING = "Tensor? dy, Tensor? d_attention"
_OPTIONS = (  # the fields of Options, in their order
    "int num_splits, bool relu_u, bool relu_z, ScalarType? out_dtype, bool need_attention, bool need_lse, "
    "float eps1, float eps2, str backend"
)
_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    f"forward({_GENERAL}, {_OPTIONS}) -> (Tensor y, Tensor attention, Tensor z, Tensor lse)": (
        _run_forward,
        _promise_forward,
    ),
    f"backward({_ARRIVING}, {_GENERAL}, Tensor z, Tensor lse, {_OPTIONS}) "
    "-> (Tensor dx, Tensor dscale, Tensor dshift, Tensor dv, Tensor db)": (
        _run_backward,
        _promise_backward,
    ),
    f"norm_forward({_NORM}, {_CANCELLED}, {_OPTIONS}) "
    "-> (Tensor y, Tensor attention, Tensor z, Tensor lse, Tensor first, Tensor second)": (
        _run_norm_forward,
        _promise_norm_forward,
    ),
    f"norm_backward({_ARRIVING}, {_NORM}, Tensor z, Tensor lse, Tensor first, Tensor second, {_OPTIONS}) "
    "-> (Tensor dx, Tensor ddw, Tensor dgamma1, Tensor dbeta1, Tensor dpw, Tensor dgamma2, Tensor dbeta2)": (
        _run_norm_backward,
        _promise_norm_backward,
    ),
}
for _schema, (_run, _promise) in _OPERATORS.items():
    _name = _schema.partition("(")[0]
    LIBRARY.define(_schema)
    LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")  # on every device
    torch.library.register_fake(f"ulsam_fused::{_name}", _promise, lib=LIBRARY)


def differentiate(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give an operator its derivatives: those of whatever calls it by name, such as an exported program."""
    torch.library.register_autograd(f"ulsam_fused::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def _no_second_derivative(*_: Any) -> None:
    raise RuntimeError(
        "a compiled backward of ulsam_fused has no derivative: second derivatives (create_graph=True) need eager mode"
    )


for _name in ("backward", "norm_backward"):
    differentiate(_name, lambda ctx, inputs, output: None, _no_second_derivative)
