"""The operators that PyTorch sees: `forward`, `backward`, `norm_forward` and `norm_backward` of `ulsam_fused`.

They are functional and of fixed arity. Compilers, exporters and dispatch modes call them, and their fakes promise
shapes, types and strides. A plain eager call goes to the backend itself (`Route.way`), which may update running
statistics and talk to other processes, too. Options are taken apart here and nowhere else: a schema needs plain values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..kernels.contract import (
    Exchange,
    Forward,
    Gradients,
    Group,
    NormBackend,
    NormForward,
    NormGradients,
    NormSaved,
    Options,
)
from . import tracing
from .routes import Route

_NOTHING = Exchange()


def forward(
    x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, options: Options, route: Route
) -> Forward:
    """The general form; see `contract.Backend`."""
    if route.way == "operator":
        return Forward(*torch.ops.ulsam_fused.forward.default(x, scale, shift, v, b, *options))
    return backends.door(route.backend, x.device).forward(x, scale, shift, v, b, options)


def backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,
    lse: Tensor,
    options: Options,
) -> Gradients:
    """Its gradients. The way is decided anew: what looks on now need not have looked on in the forward."""
    if tracing.needs_op(x):
        op = torch.ops.ulsam_fused.backward.default
        return Gradients(*op(dy, d_attention, x, scale, shift, v, b, z, lse, *options))
    door = backends.door(options.backend, x.device)
    return door.backward(dy, d_attention, x, scale, shift, v, b, z, lse, options)


def norm_forward(
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    options: Options,
    exchange: Exchange,
    route: Route,
) -> NormForward:
    """The form with norms; see `contract.NormBackend`. The operator updates nothing and knows no other process."""
    if route.way == "operator":
        op = torch.ops.ulsam_fused.norm_forward.default
        return NormForward(*op(x, dw, gamma1, beta1, pw, gamma2, beta2, *options))
    door = _norm_door(options.backend, x)
    return door.norm_forward(x, dw, gamma1, beta1, pw, gamma2, beta2, options, exchange)


def norm_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    saved: NormSaved,
    options: Options,
    group: Group | None,
) -> NormGradients:
    """Its gradients; the way is decided anew, as in `backward`."""
    if group is None and tracing.needs_op(x):
        op = torch.ops.ulsam_fused.norm_backward.default
        return NormGradients(*op(dy, d_attention, x, dw, gamma1, beta1, pw, gamma2, beta2, *saved, *options))
    door = _norm_door(options.backend, x)
    return door.norm_backward(
        dy, d_attention, x, dw, gamma1, beta1, pw, gamma2, beta2, saved, options, group
    )  # fmt: skip


def moments(x: Tensor, group: Group | None, route: Route) -> Tensor:
    """Mean, biased variance and count of every channel of x: [3, C]."""
    backend = "torch" if route.way == "operator" else route.backend  # its steps are PyTorch's own
    return _norm_door(backend, x).moments(x, group)


def _norm_door(backend: str, x: Tensor) -> NormBackend:
    # an empty batch still takes part in what processes exchange; it needs no kernel
    return backends.norm_door("torch" if x.numel() == 0 else backend, x.device)


# --- what the operators run -----------------------------------------------------------------------------------------


def _filled(t: Tensor | None, like: Tensor) -> Tensor:
    """An operator's outputs are tensors, and no two of them are one."""
    return like.new_empty(0) if t is None else t


def _run_forward(
    x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    o = Options(*options)
    found = backends.door(backends.requested(o.backend), x.device).forward(x, scale, shift, v, b, o)
    return found.y, _filled(found.attention, found.z), found.z, _filled(found.lse, found.z)


def _run_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,
    lse: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    o = Options(*options)
    door = backends.door(backends.requested(o.backend), x.device)
    return tuple(_filled(t, scale) for t in door.backward(dy, d_attention, x, scale, shift, v, b, z, lse, o))


def _run_norm_forward(
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    o = Options(*options)
    door = _norm_door(backends.requested(o.backend), x)
    found = door.norm_forward(x, dw, gamma1, beta1, pw, gamma2, beta2, o, _NOTHING)
    return tuple(_filled(t, found.z) for t in found)


def _run_norm_backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    z: Tensor,
    lse: Tensor,
    first: Tensor,
    second: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    o = Options(*options)
    gradients = _norm_door(backends.requested(o.backend), x).norm_backward(
        dy, d_attention, x, dw, gamma1, beta1, pw, gamma2, beta2, NormSaved(z, lse, first, second), o, None
    )
    return tuple(_filled(t, dw) for t in gradients)


# --- and what their fakes promise -------------------------------------------------------------------------------------


def _promise_forward(
    x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    o = Options(*options)
    y, attention, z = _promised_maps(x, o)
    n, _, _, _ = x.shape
    return y, attention, z, z.new_empty((n, o.num_splits) if o.need_lse else 0)


def _promise_norm_forward(
    x: Tensor, dw: Tensor, gamma1: Tensor | None, beta1: Tensor | None, pw: Tensor, gamma2: Tensor | None,
    beta2: Tensor | None, *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    o = Options(*options)
    y, attention, z = _promised_maps(x, o)
    n, c, _, _ = x.shape
    first = z.new_empty(0) if gamma1 is None else z.new_empty(5, c)
    return y, attention, z, z.new_empty(n, o.num_splits), first, z.new_empty(6, o.num_splits)


def _promised_maps(x: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    n, _, h, w = x.shape
    z = x.new_empty((n, o.num_splits, h, w), dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, dtype=o.out_dtype), torch.empty_like(z) if o.need_attention else z.new_empty(0), z


def _promise_backward(
    dy: Tensor | None, d_attention: Tensor | None, x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor,
    b: Tensor | None, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return torch.empty_like(x), *(_promised_gradient(p, scale) for p in (scale, shift, v, b))


def _promise_norm_backward(
    dy: Tensor | None, d_attention: Tensor | None, x: Tensor, dw: Tensor, gamma1: Tensor | None, beta1: Tensor | None,
    pw: Tensor, gamma2: Tensor | None, beta2: Tensor | None, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return torch.empty_like(x), *(_promised_gradient(p, dw) for p in (dw, gamma1, beta1, pw, gamma2, beta2))


def _promised_gradient(p: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if p is None else p.new_empty(p.shape)


_LIBRARY = torch.library.Library("ulsam_fused", "DEF")
_GENERAL = "Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor? b"
_NORM = "Tensor x, Tensor dw, Tensor? gamma1, Tensor? beta1, Tensor pw, Tensor? gamma2, Tensor? beta2"
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
    f"norm_forward({_NORM}, {_OPTIONS}) "
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
    _LIBRARY.define(_schema)
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _key)
    torch.library.register_fake(f"ulsam_fused::{_name}", _promise, lib=_LIBRARY)
