"""The differentiable operator between BatchNorms with batch statistics: a torch.autograd.Function.

Saved for backward: x, the parameters, the logits z, their log-sum-exp, and the statistics of both norms.
"""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..torch_backend.batch_norm import Running, update_running
from . import norm_registration as norm_ops
from .autograd import derivatives

_TENSORS = 7  # x and six parameters; the two biases that cancel follow


def norm_form(
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
    *,
    cancelled: tuple[Tensor | None, Tensor | None],
    running1: Running | None,
    running2: Running | None,
    group: Any,
) -> tuple[Tensor, Tensor | None]:
    """y and A (None or empty unless needed); gamma1 or gamma2 None: that norm is absent (see torch_norm.py).

    cancelled: biases of the convolutions before a norm; a gradient of 0 tells DistributedDataParallel and optimizers
    that they took part.
    """
    tensors = (x, dw, gamma1, beta1, pw, gamma2, beta2)
    arguments = (num_splits, eps1, eps2, relu_u, relu_z, out_dtype, need_attention, backend)
    functional = norm_ops.needs_op(x, group)
    exchange = {
        "running1": None if functional else running1,
        "running2": None if functional else running2,
        "group": group,
    }
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors + cancelled):
        results = NormalizedSubspaceAttention.apply(*tensors, *cancelled, arguments, exchange)  # type: ignore[no-untyped-call]
        y, attention, first, second = results
    else:
        y, attention, _, _, first, second = norm_ops.norm_forward(*tensors, *arguments, **exchange)
    if functional and running1 is not None:
        update_running(running1, first[1], first[3], first[4], dw.detach())
    if functional and running2 is not None:
        update_running(running2, second[2], second[4], second[5])
    return y, attention


class NormalizedSubspaceAttention(torch.autograd.Function):
    """(x, six parameters, two cancelled biases, arguments, exchange) -> (y, A, first, second)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dw: Tensor,
        gamma1: Tensor | None,
        beta1: Tensor | None,
        pw: Tensor,
        gamma2: Tensor | None,
        beta2: Tensor | None,
        dw_bias: Tensor | None,
        pw_bias: Tensor | None,
        arguments: tuple[Any, ...],
        exchange: dict[str, Any],
    ) -> Any:
        tensors = (x, dw, gamma1, beta1, pw, gamma2, beta2)
        y, attention, z, lse, first, second = norm_ops.norm_forward(*tensors, *arguments, **exchange)
        ctx.save_for_backward(*tensors, z, lse, first, second)
        ctx.cancelled = [None if t is None else (t.shape, t.dtype) for t in (dw_bias, pw_bias)]
        ctx.arguments, ctx.group = arguments, exchange["group"]
        ctx.set_materialize_grads(False)
        if arguments[6] or attention is None:
            ctx.mark_non_differentiable(first, second)
        else:  # empty, where the operator was called
            ctx.mark_non_differentiable(attention, first, second)
        return y, attention, first, second

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None, *_: Any) -> Any:
        num_splits, eps1, _, relu_u, relu_z, _, need_attention, backend = ctx.arguments
        nothing = (None,) * 2
        saved = ctx.saved_tensors  # once: checkpointing allows no second look
        zeros = [None if t is None else saved[0].new_zeros(t[0], dtype=t[1]) for t in ctx.cancelled]
        if not need_attention:
            d_attention = None
        if dy is None and d_attention is None and ctx.group is None:
            return (*(None,) * _TENSORS, None, None, *nothing)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return (*_differentiable_backward(ctx, saved[:_TENSORS], dy, d_attention), *zeros, *nothing)
        gradients = norm_ops.norm_backward(
            dy, d_attention, *saved, num_splits, eps1, relu_u, relu_z, backend, group=ctx.group
        )
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return (*(gradient if need else None for gradient, need in needed), *zeros, *nothing)


def _differentiable_backward(
    ctx: Any, tensors: tuple[Any, ...], dy: Tensor | None, d_attention: Tensor | None
) -> list[Tensor | None]:
    """The first derivatives as functions that can be differentiated again, through the reference."""
    if ctx.group is not None:
        raise RuntimeError("a second derivative through statistics that are synchronised between processes")
    x, dw, gamma1, beta1, pw, gamma2, beta2 = tensors
    num_splits, eps1, eps2, relu_u, relu_z, out_dtype, *_ = ctx.arguments

    def norm(gamma: Tensor | None, beta: Tensor, eps: float) -> reference.BatchNorm | None:
        return None if gamma is None else reference.BatchNorm(gamma, beta, None, None, True, 0.0, eps)

    outputs = reference.batch_norm_form(
        x, dw, beta1 if gamma1 is None else None, norm(gamma1, beta1, eps1),
        pw, beta2 if gamma2 is None else None, norm(gamma2, beta2, eps2),
        num_splits, relu_u=relu_u, relu_z=relu_z, out_dtype=out_dtype,
    )  # fmt: skip
    return derivatives(outputs, (dy, d_attention), tensors, ctx.needs_input_grad)
