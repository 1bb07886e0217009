"""The operators that PyTorch sees: `ulsam_fused::forward` and `ulsam_fused::backward`, functional and of fixed arity.

Plain eager calls go to the implementation directly (`forward`, `backward` below choose); compilers, export and dispatch
modes see the operator, whose fakes promise shapes, types and strides.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import tracing

_MODULES = {"triton": "ulsam_fused.kernels.gpu.backend", "torch": "ulsam_fused.torch_backend.backend"}
_implementations: dict[tuple[str, torch.device, str], Any] = {}


def implementation(backend: str, device: torch.device, modules: dict[str, str] = _MODULES) -> Any:
    """The module, one of `modules`, that serves this backend, as `backends.requested` gives it, on this device."""
    key = (backend, device, modules["triton"])
    module = _implementations.get(key)
    if module is None:
        module = importlib.import_module(modules[backends.serving(backend, device)])
        _implementations[key] = module
    return module


def _forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    need_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, attention, z, lse = implementation(backends.requested(backend), x.device).forward(
        x, scale, shift, v, b, num_splits, relu_u, relu_z, out_dtype, need_attention, need_lse
    )
    return y, filled(attention, z), z, filled(lse, z)


def _backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,
    lse: Tensor,
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dscale, dshift, dv, db = implementation(backends.requested(backend), x.device).backward(
        dy, d_attention, x, scale, shift, v, b, z, lse, num_splits, relu_u, relu_z
    )
    return dx, dscale, filled(dshift, scale), dv, filled(db, scale)


def filled(t: Tensor | None, like: Tensor) -> Tensor:
    """An operator's outputs are tensors, and no two of them are one."""
    return like.new_empty(0) if t is None else t


_LIBRARY = torch.library.Library("ulsam_fused", "DEF")
_PARAMETERS = "Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor? b"
_LIBRARY.define(
    f"forward({_PARAMETERS}, int num_splits, bool relu_u, bool relu_z, ScalarType? out_dtype, bool need_attention, "
    "bool need_lse, str backend) -> (Tensor y, Tensor attention, Tensor z, Tensor lse)"
)
_LIBRARY.define(
    f"backward(Tensor? dy, Tensor? d_attention, {_PARAMETERS}, Tensor z, Tensor lse, int num_splits, bool relu_u, "
    "bool relu_z, str backend) -> (Tensor dx, Tensor dscale, Tensor dshift, Tensor dv, Tensor db)"
)
for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("forward", _forward, _key)
    _LIBRARY.impl("backward", _backward, _key)


@torch.library.register_fake("ulsam_fused::forward", lib=_LIBRARY)
def _(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    need_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, _, h, w = x.shape
    map_dtype = torch.promote_types(x.dtype, torch.float32)
    z = x.new_empty((n, num_splits, h, w), dtype=map_dtype)
    attention = torch.empty_like(z) if need_attention else x.new_empty(0, dtype=map_dtype)
    lse = x.new_empty((n, num_splits) if need_lse else 0, dtype=map_dtype)
    return torch.empty_like(x, dtype=out_dtype), attention, z, lse


@torch.library.register_fake("ulsam_fused::backward", lib=_LIBRARY)
def _(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,
    lse: Tensor,
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(p: Tensor | None) -> Tensor:
        return scale.new_empty(0) if p is None else p.new_empty(p.shape)

    return torch.empty_like(x), like(scale), like(shift), like(v), like(b)


def forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """y, A, z and lse; arguments as `_forward`. A and lse are None, or of no elements, unless needed."""
    if tracing.needs_op(x):
        return torch.ops.ulsam_fused.forward.default(x, *arguments)  # type: ignore[no-any-return]
    return implementation(arguments[-1], x.device).forward(x, *arguments[:-1])  # type: ignore[no-any-return]


def backward(dy: Tensor | None, d_attention: Tensor | None, x: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    """dx, dscale, dshift, dv and db; the third and last None, or of no elements, where the parameter is."""
    if tracing.needs_op(x):
        return torch.ops.ulsam_fused.backward.default(dy, d_attention, x, *arguments)  # type: ignore[no-any-return]
    return implementation(arguments[-1], x.device).backward(dy, d_attention, x, *arguments[:-1])  # type: ignore[no-any-return]
