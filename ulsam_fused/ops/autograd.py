"""The differentiable operator in its general form (see `reference`): a torch.autograd.Function around the backend.

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


def general_form(inputs: Inputs, options: Options, route: Route) -> tuple[Tensor, Tensor | None]:
    """y and A (None or empty unless needed). Without `need_lse` no backward can follow, and no Function is made."""
    if options.need_lse:
        return SubspaceAttention.apply(options, route, *inputs)  # type: ignore[no-any-return,no-untyped-call]
    found = registration.forward(inputs, options, route)
    return found.y, found.attention


class SubspaceAttention(torch.autograd.Function):
    """(options, route, *Inputs) -> (y, A). Autograd sees tensors only where each is an argument."""

    @staticmethod
    def forward(ctx: Any, options: Options, route: Route, *tensors: Any) -> tuple[Tensor, Tensor | None]:
        inputs = Inputs(*tensors)
        y, attention, z, lse = registration.forward(inputs, options, route)
        ctx.save_for_backward(*inputs, z, lse)
        ctx.options, ctx.way = options, route.way
        ctx.set_materialize_grads(False)
        if attention is not None and not options.need_attention:
            ctx.mark_non_differentiable(attention)
        return y, attention

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, z, lse = ctx.saved_tensors  # once: checkpointing allows no second look
        inputs, options = Inputs(*tensors), ctx.options
        _, _, *needed = ctx.needs_input_grad
        if not options.need_attention:
            d_attention = None
        gradients: Sequence[Tensor | None] = (None,) * len(inputs)
        if dy is None and d_attention is None:
            pass
        elif (way := tracing.way_back(ctx.way, dy, d_attention)) == "reference":
            with torch.enable_grad():
                outputs = reference.general_form(
                    *inputs, options.num_splits, relu_u=options.relu_u, relu_z=options.relu_z,
                    out_dtype=options.out_dtype,
                )  # fmt: skip
            gradients = derivatives(outputs, (dy, d_attention), inputs, needed)
        else:
            gradients = registration.backward(dy, d_attention, inputs, z, lse, options, way)
        return None, None, *only_needed(gradients, needed)


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
