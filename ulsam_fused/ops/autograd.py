"""Derivatives of the general form (see `reference`): for direct calls and for the registered operator.

Saved for backward: x, the parameters, the logits z and their log-sum-exp: 4 bytes per pixel and subspace, and 4 per
subspace. First derivatives come from the fused backward. A second derivative (create_graph=True) is taken through the
eager reference: exact and slow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..kernels.contract import Inputs, NormInputs, Options
from . import registration, tracing
from .routes import Route
from .tracing import Way


def general_form(inputs: Inputs, options: Options, route: Route) -> tuple[Tensor, Tensor | None]:
    """y and A (None or empty unless needed). Only a direct call needs a Function of ours, and only for gradients."""
    if options.need_lse and route.way == "direct":
        return SubspaceAttention.apply(options, route, *inputs)  # type: ignore[no-any-return,no-untyped-call]
    found = registration.forward(inputs, options, route)
    return found.y, found.attention


class SubspaceAttention(torch.autograd.Function):
    """(options, route, *Inputs) -> (y, A). Autograd sees tensors only where each is an argument."""

    @staticmethod
    def forward(ctx: Any, options: Options, route: Route, *tensors: Any) -> tuple[Tensor, Tensor | None]:
        inputs = Inputs(*tensors)
        y, attention, z, lse = registration.forward(inputs, options, route)
        _save(ctx, inputs, options, route.way, z, lse)
        return y, attention

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, *needed = ctx.needs_input_grad
        return None, None, *_gradients(ctx, dy, d_attention, needed)


def _save(ctx: Any, inputs: Inputs, options: Options, way: Way, z: Tensor, lse: Tensor | None) -> None:
    ctx.save_for_backward(*inputs, z, lse)
    ctx.options, ctx.way = options, way
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, dy: Tensor | None, d_attention: Tensor | None, needed: Sequence[bool]
) -> Sequence[Tensor | None]:
    *tensors, z, lse = ctx.saved_tensors  # once: checkpointing allows no second look
    inputs, options = Inputs(*tensors), ctx.options
    if not options.need_attention:
        d_attention = None
    if dy is None and d_attention is None:
        return (None,) * len(inputs)
    way = tracing.way_back(ctx.way, dy, d_attention)
    if way == "reference":
        with torch.enable_grad():
            outputs = reference.general_form(
                *inputs, options.num_splits, relu_u=options.relu_u, relu_z=options.relu_z, out_dtype=options.out_dtype
            )
        return derivatives(outputs, (dy, d_attention), inputs, needed)
    if not options.need_lse:  # a program that was exported without gradients trains nevertheless
        lse = (z.relu() if options.relu_z else z).flatten(2).logsumexp(-1)
    return only_needed(registration.backward(dy, d_attention, inputs, z, lse, options, way), needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, options = registration.grouped(inputs, Inputs, Options)
    _, attention, z, lse = output
    _save(ctx, tensors, options, "operator", z, lse)
    ctx.mark_non_differentiable(z, lse, *([] if options.need_attention else [attention]))


def _backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[: len(Inputs._fields)]
    return *_gradients(ctx, dy, d_attention, needed), *(None,) * len(Options._fields)


registration.differentiate("forward", _setup_context, _backward)


def only_needed(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """None in place of a gradient that nobody asked for."""
    return [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]


def derivatives(
    outputs: tuple[Tensor, Tensor],
    arriving: tuple[Tensor | None, Tensor | None],
    inputs: Inputs | NormInputs,
    needed: Sequence[bool],  # one for each input
) -> list[Tensor | None]:
    """The gradients of the outputs in each of the inputs that needs one; where grad mode is on with their own graph."""
    pairs = [(out, grad) for out, grad in zip(outputs, arriving, strict=True) if grad is not None]
    leaves = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
    gradients = iter(
        torch.autograd.grad(
            [out for out, _ in pairs],
            leaves,
            [grad for _, grad in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(gradients) if need else None for need in needed]
