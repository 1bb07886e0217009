"""The differentiable operator in its general form (see `reference`): a torch.autograd.Function around the operators.

Saved for backward: x, the parameters, the logits z and their log-sum-exp: 4 bytes per pixel and subspace, and 4 per
subspace. First derivatives come from the fused backward; a second derivative (create_graph=True) is taken through the
eager reference, exact and slow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import registration as ops


def general_form(
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
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """y and A (None or empty unless needed); no Function where no gradient can be asked for."""
    if torch.is_grad_enabled() and (
        x.requires_grad
        or scale.requires_grad
        or v.requires_grad
        or (shift is not None and shift.requires_grad)
        or (b is not None and b.requires_grad)
    ):
        arguments = (num_splits, relu_u, relu_z, out_dtype, need_attention, True, backend)
        return SubspaceAttention.apply(x, scale, shift, v, b, *arguments)  # type: ignore[no-any-return,no-untyped-call]
    y, attention, _, _ = ops.forward(
        x, scale, shift, v, b, num_splits, relu_u, relu_z, out_dtype, need_attention, False, backend
    )
    return y, attention


class SubspaceAttention(torch.autograd.Function):
    """(x, scale, shift, v, b, num_splits, relu_u, relu_z, out_dtype, need_attention, need_lse, backend) -> (y, A)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, *arguments: Any
    ) -> Any:
        y, attention, z, lse = ops.forward(x, scale, shift, v, b, *arguments)
        ctx.save_for_backward(x, scale, shift, v, b, z, lse)
        ctx.arguments = arguments
        ctx.set_materialize_grads(False)
        if attention is not None and not arguments[4]:
            ctx.mark_non_differentiable(attention)
        return y, attention

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None) -> Any:
        x, scale, shift, v, b, z, lse = ctx.saved_tensors  # once: checkpointing allows no second look
        num_splits, relu_u, relu_z, _, need_attention, _, backend = ctx.arguments
        nothing = (None,) * len(ctx.arguments)
        if not need_attention:
            d_attention = None
        if dy is None and d_attention is None:
            return (*(None,) * 5, *nothing)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return (*_differentiable_backward(ctx, (x, scale, shift, v, b), dy, d_attention), *nothing)
        gradients = ops.backward(dy, d_attention, x, scale, shift, v, b, z, lse, num_splits, relu_u, relu_z, backend)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return (*(gradient if need else None for gradient, need in needed), *nothing)


def _differentiable_backward(
    ctx: Any, tensors: tuple[Any, ...], dy: Tensor | None, d_attention: Tensor | None
) -> list[Tensor | None]:
    """The first derivatives as functions that can be differentiated again, through the reference."""
    x, scale, shift, v, b = tensors
    num_splits, relu_u, relu_z, out_dtype, *_ = ctx.arguments
    outputs = reference.general_form(
        x, scale, shift, v, b, num_splits, relu_u=relu_u, relu_z=relu_z, out_dtype=out_dtype
    )
    return derivatives(outputs, (dy, d_attention), tensors, ctx.needs_input_grad)


def derivatives(
    outputs: tuple[Tensor, Tensor],
    arriving: tuple[Tensor | None, Tensor | None],
    tensors: tuple[Any, ...],
    needed: Sequence[bool],  # one for each tensor, and perhaps more
) -> list[Tensor | None]:
    """The gradients of the outputs in each of the tensors that needs one, with a graph of their own."""
    pairs = [(out, grad) for out, grad in zip(outputs, arriving, strict=True) if grad is not None]
    inputs = [t for t, need in zip(tensors, needed, strict=False) if need]
    gradients = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], inputs, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(gradients) if need else None for need in needed[: len(tensors)]]
