"""`ulsam_fused::norm_forward` and `ulsam_fused::norm_backward`: the operator between BatchNorms with batch statistics.

As in ops.py, plain eager calls go to the implementation directly. There it also updates the running statistics in
place and talks to other processes; the registered operators are functional and serve one process.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..torch_backend.batch_norm import Running
from . import tracing
from .registration import filled, implementation

_FORWARD = {"triton": "ulsam_fused.kernels.gpu.norm_backend", "torch": "ulsam_fused.torch_backend.norm_backend"}
_BACKWARD = {
    "triton": "ulsam_fused.kernels.gpu.norm_backward_backend",
    "torch": "ulsam_fused.torch_backend.norm_backend",
}


def _norm_forward(
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    num_splits: int,
    eps1: float,
    eps2: float,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    backend: str,
    *exchange: Any,  # running1, running2, group
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    # an empty batch still takes part in what processes exchange; it needs no kernel
    module = implementation("torch" if x.numel() == 0 else backends.requested(backend), x.device, _FORWARD)
    return module.norm_forward(  # type: ignore[no-any-return]
        x, dw, gamma1, beta1, pw, gamma2, beta2, num_splits, eps1, eps2, relu_u, relu_z, out_dtype, need_attention,
        *exchange,
    )  # fmt: skip


def _norm_forward_op(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    y, attention, z, *rest = _norm_forward(x, *arguments)
    return y, filled(attention, z), z, *rest


def _norm_backward(
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
    num_splits: int,
    eps1: float,
    relu_u: bool,
    relu_z: bool,
    backend: str,
    group: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    module = implementation("torch" if x.numel() == 0 else backends.requested(backend), x.device, _BACKWARD)
    gradients = module.norm_backward(
        dy, d_attention, x, dw, gamma1, beta1, pw, gamma2, beta2, z, lse, first, second, num_splits, eps1, relu_u,
        relu_z, group,
    )  # fmt: skip
    return tuple(filled(gradient, dw) for gradient in gradients)  # type: ignore[return-value]


_LIBRARY = torch.library.Library("ulsam_fused", "FRAGMENT")
_PARAMETERS = "Tensor x, Tensor dw, Tensor? gamma1, Tensor? beta1, Tensor pw, Tensor? gamma2, Tensor? beta2"
_LIBRARY.define(
    f"norm_forward({_PARAMETERS}, int num_splits, float eps1, float eps2, bool relu_u, bool relu_z, "
    "ScalarType? out_dtype, bool need_attention, str backend) "
    "-> (Tensor y, Tensor attention, Tensor z, Tensor lse, Tensor first, Tensor second)"
)
_LIBRARY.define(
    f"norm_backward(Tensor? dy, Tensor? d_attention, {_PARAMETERS}, Tensor z, Tensor lse, Tensor first, Tensor second, "
    "int num_splits, float eps1, bool relu_u, bool relu_z, str backend) "
    "-> (Tensor dx, Tensor ddw, Tensor dgamma1, Tensor dbeta1, Tensor dpw, Tensor dgamma2, Tensor dbeta2)"
)
for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("norm_forward", _norm_forward_op, _key)
    _LIBRARY.impl("norm_backward", _norm_backward, _key)


@torch.library.register_fake("ulsam_fused::norm_forward", lib=_LIBRARY)
def _(
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    num_splits: int,
    eps1: float,
    eps2: float,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    z = x.new_empty((n, num_splits, h, w), dtype=torch.promote_types(x.dtype, torch.float32))
    attention = torch.empty_like(z) if need_attention else z.new_empty(0)
    first = z.new_empty(0) if gamma1 is None else z.new_empty(5, c)
    y = torch.empty_like(x, dtype=out_dtype)
    return y, attention, z, z.new_empty(n, num_splits), first, z.new_empty(6, num_splits)


@torch.library.register_fake("ulsam_fused::norm_backward", lib=_LIBRARY)
def _(
    dy: Tensor | None,
    d_attention: Tensor | None,
    x: Tensor,
    dw: Tensor,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    pw: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    def like(p: Tensor | None) -> Tensor:
        return dw.new_empty(0) if p is None else p.new_empty(p.shape)

    return torch.empty_like(x), *(like(p) for p in (dw, gamma1, beta1, pw, gamma2, beta2))


def norm_forward(
    x: Tensor, *arguments: Any, running1: Running | None, running2: Running | None, group: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """y, A, z, lse, first and second; arguments as `_norm_forward`. The operator takes no running and no group."""
    if needs_op(x, group):
        assert running1 is None
        assert running2 is None
        return torch.ops.ulsam_fused.norm_forward.default(x, *arguments)  # type: ignore[no-any-return]
    return _norm_forward(x, *arguments, running1, running2, group)


def norm_backward(
    dy: Tensor | None, d_attention: Tensor | None, x: Tensor, *arguments: Any, group: Any
) -> tuple[Tensor, ...]:
    """dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2; of no elements where the parameter is None."""
    if needs_op(x, group):
        return torch.ops.ulsam_fused.norm_backward.default(dy, d_attention, x, *arguments)  # type: ignore[no-any-return]
    return _norm_backward(dy, d_attention, x, *(*arguments, group))


def needs_op(x: Tensor, group: Any) -> bool:
    """Whether the registered operator is called, which is functional and knows no other process."""
    return group is None and tracing.needs_op(x)


def folded_forward(x: Tensor, backend: str) -> Any:
    """What serves this call with both norms folded inside a kernel; None where PyTorch folds them."""
    if tracing.needs_op(x):
        return None
    return getattr(implementation(backend, x.device, _FORWARD), "folded_forward", None)


def moments(x: Tensor, backend: str, group: Any) -> Tensor:
    """Mean, biased variance and count of every channel of x: [3, C], float32 or float64."""
    if tracing.needs_op(x) or x.numel() == 0:
        backend = "torch"  # its steps are PyTorch's own
    return implementation(backend, x.device, _FORWARD).moments(x, group)  # type: ignore[no-any-return]
