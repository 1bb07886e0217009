"""The differentiable operator between BatchNorms with batch statistics: a torch.autograd.Function around the backend.

Saved for backward: x, the parameters, the logits z, their log-sum-exp, and the statistics of both norms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..kernels.batch_norm import update_running
from ..kernels.contract import Exchange, InputStatistics, LogitStatistics, NormInputs, NormSaved, Options
from . import registration, tracing
from .autograd import derivatives, only_needed
from .routes import Route, any_requires_grad


def norm_form(
    inputs: NormInputs,
    options: Options,
    exchange: Exchange,
    route: Route,
    *,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """y and A (None or empty unless needed).

    dw_bias, pw_bias: biases of the convolutions before a norm, which cancel; a gradient of 0 tells
    DistributedDataParallel and optimizers that they took part.
    """
    functional = route.way == "operator"  # which updates no running statistics
    inside = Exchange(group=exchange.group) if functional else exchange
    if torch.is_grad_enabled() and any_requires_grad(*inputs, dw_bias, pw_bias):
        y, attention, first, second = NormalizedSubspaceAttention.apply(  # type: ignore[no-untyped-call]
            options, inside, route, dw_bias, pw_bias, *inputs
        )
    else:
        y, attention, _, _, first, second = registration.norm_forward(inputs, options, inside, route)
    if functional and exchange.running1 is not None:
        of_x = InputStatistics(*first)
        update_running(exchange.running1, of_x.mean, of_x.var, of_x.values, inputs.dw.detach())
    if functional and exchange.running2 is not None:
        of_z = LogitStatistics(*second)
        update_running(exchange.running2, of_z.mean, of_z.var, of_z.values)
    return y, attention


class NormalizedSubspaceAttention(torch.autograd.Function):
    """(options, exchange, route, two biases that cancel, *NormInputs) -> (y, A, first, second)."""

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        exchange: Exchange,
        route: Route,
        dw_bias: Tensor | None,
        pw_bias: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        inputs = NormInputs(*tensors)
        y, attention, z, lse, first, second = registration.norm_forward(inputs, options, exchange, route)
        ctx.save_for_backward(*inputs, z, lse, first, second)
        ctx.cancelled = [None if t is None else (t.shape, t.dtype) for t in (dw_bias, pw_bias)]
        ctx.options, ctx.group, ctx.way = options, exchange.group, route.way
        ctx.set_materialize_grads(False)
        if options.need_attention or attention is None:
            ctx.mark_non_differentiable(first, second)
        else:  # empty, where the operator was called
            ctx.mark_non_differentiable(attention, first, second)
        return y, attention, first, second

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        *tensors, z, lse, first, second = ctx.saved_tensors  # once: checkpointing allows no second look
        inputs, options = NormInputs(*tensors), ctx.options
        _, _, _, _, _, *needed = ctx.needs_input_grad
        zeros = [None if t is None else inputs.x.new_zeros(t[0], dtype=t[1]) for t in ctx.cancelled]
        if not options.need_attention:
            d_attention = None
        gradients: Sequence[Tensor | None] = (None,) * len(inputs)
        if dy is None and d_attention is None and ctx.group is None:
            zeros = [None, None]
        elif (way := tracing.way_back(ctx.way, dy, d_attention)) == "reference":
            if ctx.group is not None:
                raise RuntimeError("a second derivative through statistics that are synchronised between processes")
            x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
            with torch.enable_grad():
                outputs = reference.batch_norm_form(
                    x, dw, beta1 if gamma1 is None else None, _literal(gamma1, beta1, options.eps1),
                    pw, beta2 if gamma2 is None else None, _literal(gamma2, beta2, options.eps2),
                    options.num_splits, relu_u=options.relu_u, relu_z=options.relu_z, out_dtype=options.out_dtype,
                )  # fmt: skip
            gradients = derivatives(outputs, (dy, d_attention), inputs, needed)
        else:
            saved = NormSaved(z, lse, first, second)
            gradients = registration.norm_backward(dy, d_attention, inputs, saved, options, ctx.group, way)
        return None, None, None, *zeros, *only_needed(gradients, needed)


def _literal(gamma: Tensor | None, beta: Any, eps: float) -> reference.BatchNorm | None:
    """A norm with the statistics of the batch, as the reference takes it; None where it is absent."""
    return None if gamma is None else reference.BatchNorm(gamma, beta, None, None, True, 0.0, eps)
