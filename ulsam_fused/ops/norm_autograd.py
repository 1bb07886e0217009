"""Derivatives between BatchNorms with statistics of the batch: for direct calls and for the registered operator.

Saved for backward: x, the parameters, the logits z, their log-sum-exp, and the statistics of both norms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..kernels.batch_norm import update_running
from ..kernels.contract import Exchange, Group, InputStatistics, LogitStatistics, NormInputs, NormSaved, Options
from . import registration, tracing
from .autograd import derivatives, only_needed
from .registration import Cancelled
from .routes import Route, any_requires_grad
from .tracing import Way


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
    cancelled = Cancelled(dw_bias, pw_bias)
    if route.way == "direct":
        if torch.is_grad_enabled() and any_requires_grad(*inputs, *cancelled):
            return NormalizedSubspaceAttention.apply(  # type: ignore[no-any-return,no-untyped-call]
                options, exchange, route, *cancelled, *inputs
            )
        found = registration.norm_forward(inputs, cancelled, options, exchange, route)
        return found.y, found.attention
    # an operator is functional: what it changes, it returns
    found = registration.norm_forward(inputs, cancelled, options, exchange, route)
    if exchange.running1 is not None:
        of_x = InputStatistics(*found.first.detach())
        update_running(exchange.running1, of_x.mean, of_x.var, of_x.values, inputs.dw.detach())
    if exchange.running2 is not None:
        of_z = LogitStatistics(*found.second.detach())
        update_running(exchange.running2, of_z.mean, of_z.var, of_z.values)
    return found.y, found.attention


class NormalizedSubspaceAttention(torch.autograd.Function):
    """(options, exchange, route, *Cancelled, *NormInputs) -> (y, A)."""

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        exchange: Exchange,
        route: Route,
        dw_bias: Tensor | None,
        pw_bias: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor | None]:
        inputs, cancelled = NormInputs(*tensors), Cancelled(dw_bias, pw_bias)
        y, attention, *saved = registration.norm_forward(inputs, cancelled, options, exchange, route)
        _save(ctx, inputs, cancelled, options, exchange.group, route.way, saved)
        return y, attention

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, _, _, _, *needed = ctx.needs_input_grad
        gradients, zeros = _gradients(ctx, dy, d_attention, needed)
        return None, None, None, *zeros, *gradients


def _save(
    ctx: Any,
    inputs: NormInputs,
    cancelled: Cancelled,
    options: Options,
    group: Group | None,
    way: Way,
    saved: Sequence[Tensor],
) -> None:
    """saved: the fields of NormSaved."""
    ctx.save_for_backward(*inputs, *saved)
    ctx.cancelled = [None if t is None else (t.shape, t.dtype) for t in cancelled]
    ctx.options, ctx.group, ctx.way = options, group, way
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, dy: Tensor | None, d_attention: Tensor | None, needed: Sequence[bool]
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Of NormInputs, and zeros for the biases that cancel."""
    *tensors, z, lse, first, second = ctx.saved_tensors  # once: checkpointing allows no second look
    inputs, options = NormInputs(*tensors), ctx.options
    zeros = [None if t is None else inputs.x.new_zeros(t[0], dtype=t[1]) for t in ctx.cancelled]
    if not options.need_attention:
        d_attention = None
    if dy is None and d_attention is None and ctx.group is None:
        return (None,) * len(inputs), (None, None)
    way = tracing.way_back(ctx.way, dy, d_attention)
    if way == "reference":
        if ctx.group is not None:
            raise RuntimeError("a second derivative through statistics that are synchronised between processes")
        x, dw, gamma1, beta1, pw, gamma2, beta2 = inputs
        with torch.enable_grad():
            outputs = reference.batch_norm_form(
                x, dw, beta1 if gamma1 is None else None, _literal(gamma1, beta1, options.eps1),
                pw, beta2 if gamma2 is None else None, _literal(gamma2, beta2, options.eps2),
                options.num_splits, relu_u=options.relu_u, relu_z=options.relu_z, out_dtype=options.out_dtype,
            )  # fmt: skip
        return derivatives(outputs, (dy, d_attention), inputs, needed), zeros
    saved = NormSaved(z, lse, first, second)
    gradients = registration.norm_backward(dy, d_attention, inputs, saved, options, ctx.group, way)
    return only_needed(gradients, needed), zeros


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, cancelled, options = registration.grouped(inputs, NormInputs, Cancelled, Options)
    _, attention, *saved = output
    _save(ctx, tensors, cancelled, options, None, "operator", saved)
    ctx.mark_non_differentiable(*saved, *([] if options.need_attention else [attention]))


def _backward(ctx: Any, dy: Tensor | None, d_attention: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[: len(NormInputs._fields)]
    gradients, zeros = _gradients(ctx, dy, d_attention, needed)
    return *gradients, *zeros, *(None,) * len(Options._fields)


registration.differentiate("norm_forward", _setup_context, _backward)


def _literal(gamma: Tensor | None, beta: Any, eps: float) -> reference.BatchNorm | None:
    """A norm with the statistics of the batch, as the reference takes it; None where it is absent."""
    return None if gamma is None else reference.BatchNorm(gamma, beta, None, None, True, 0.0, eps)
