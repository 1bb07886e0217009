"""The authors' form, with its two BatchNorms, as a function.

    both norms fixed     they fold into the general form: inside the backend's own launch, or in PyTorch for gradients
    batch statistics     norm_autograd.py
    plain PyTorch        reference.py

`routes.norm_route` decides.
"""

import torch
from torch import Tensor, nn

from .. import backends, reference
from ..kernels import batch_norm
from ..kernels.contract import Exchange, FixedNorm, Group, Inputs, NormInputs, Options, Running
from . import autograd, checks, norm_autograd, registration, values
from .module_tensors import Norm, norm_tensors
from .routes import Route, any_requires_grad, norm_route
from .tracing import Way


def norm_attention(
    x: Tensor,  # [N, C, H, W]
    dw_weight: Tensor,  # [C]
    dw_bias: Tensor | None,  # [C]
    dw_norm: nn.BatchNorm2d | Norm,  # of C channels; read, never called
    pw_weight: Tensor,  # [C]
    pw_bias: Tensor | None,  # [g]
    pw_norm: nn.BatchNorm2d | Norm,  # of g channels
    num_splits: int,
    *,
    relu: bool,
    pool_input: bool = False,  # the authors' code before October 2020: u changes nothing but dw_norm's statistics
    update: bool = True,  # running statistics, where norms are in training mode
    need_attention: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    group: Group | None = None,  # with which statistics of the batch are shared
    way: Way | None = None,  # `tracing.way_of(x)`, where it is known
    checked: bool = False,  # the arguments are known to be valid
) -> tuple[Tensor, Tensor | None]:
    """y [N,C,H,W], A [N,g,H,W] (None or empty unless needed). A norm behaves as `torch.nn.BatchNorm2d` in its mode."""
    gamma1, beta1, mean1, var1 = norm_tensors(dw_norm)
    gamma2, beta2, mean2, var2 = norm_tensors(pw_norm)
    accepted = checked or (
        group is None and plainly_valid(x, dw_weight, dw_bias, dw_norm, pw_weight, pw_bias, pw_norm, num_splits)
    )
    if not accepted:
        x, convolutions, norms = values.settled(
            x, [dw_weight, dw_bias, pw_weight, pw_bias], [gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2]
        )
        dw_weight, dw_bias, pw_weight, pw_bias = convolutions
        gamma1, beta1, mean1, var1, gamma2, beta2, mean2, var2 = norms
        mean1, var1, mean2, var2 = map(values.contiguous, (mean1, var1, mean2, var2))
        num_splits = checks.check_arguments(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias)
        checks.check_norm_tensors(x, dw_weight.dtype, x.shape[1], "dw_norm", gamma1, beta1, mean1, var1)
        checks.check_norm_tensors(x, dw_weight.dtype, num_splits, "pw_norm", gamma2, beta2, mean2, var2)
    if out_dtype is not None:
        checks.check_out_dtype(out_dtype)
    # by torch.nn.BatchNorm2d's rule
    dw_batch, pw_batch = dw_norm.training or mean1 is None, pw_norm.training or mean2 is None
    if (dw_batch or pw_batch) and x.numel() == x.shape[1] and group is None:  # as torch.nn.functional.batch_norm
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    parameters = x, dw_weight, dw_bias, gamma1, beta1, pw_weight, pw_bias, gamma2, beta2
    gradients = torch.is_grad_enabled() and any_requires_grad(*parameters)
    route = norm_route(
        (*parameters, mean1, var1, mean2, var2), backends.requested(backend), dw_batch=dw_batch, pw_batch=pw_batch,
        pool_input=pool_input, shared=group is not None, gradients=gradients, accepted=accepted, way=way,
    )  # fmt: skip
    running1 = _running(dw_norm, dw_bias, mean1, var1) if update and dw_norm.training else None
    running2 = _running(pw_norm, pw_bias, mean2, var2) if update and pw_norm.training else None

    if route.way == "reference":
        literal = reference.batch_norm_form(
            x, dw_weight, dw_bias, _literal(dw_norm.eps, gamma1, beta1, mean1, var1, dw_batch, running1),
            pw_weight, pw_bias, _literal(pw_norm.eps, gamma2, beta2, mean2, var2, pw_batch, running2),
            num_splits, relu_u=relu, relu_z=relu, pool_input=pool_input, out_dtype=out_dtype,
        )  # fmt: skip
        if not accepted:
            _keep(dw_norm, running1)
            _keep(pw_norm, running2)
        return literal
    if pool_input and running1 is not None and (x.shape[0] > 0 or group is not None):
        mean, var, count = registration.moments(x.detach(), group, route)
        batch_norm.update_running(running1, mean, var, count, dw_weight.detach())
        if not accepted:
            _keep(dw_norm, running1)

    options = Options(
        num_splits, relu and not pool_input, relu, out_dtype, need_attention, gradients, dw_norm.eps, pw_norm.eps,
        route.backend,
    )  # fmt: skip
    fixed1: FixedNorm | None = None
    fixed2: FixedNorm | None = None
    if route.dw_norm == "fixed":
        if mean1 is None or var1 is None:  # only where there is no image to take statistics from
            mean1, var1 = torch.zeros_like(beta1), torch.ones_like(beta1)
        fixed1 = FixedNorm(gamma1, beta1, mean1, var1, dw_norm.eps)
    if route.pw_norm == "fixed":
        if mean2 is None or var2 is None:
            mean2, var2 = torch.zeros_like(beta2), torch.ones_like(beta2)
        fixed2 = FixedNorm(gamma2, beta2, mean2, var2, pw_norm.eps)
    if route.folded:
        assert fixed2 is not None
        door = backends.norm_door(route.backend, x.device)
        if pool_input:
            return door.folded_forward(x, None, None, None, pw_weight, pw_bias, fixed2, options)
        return door.folded_forward(x, dw_weight, dw_bias, fixed1, pw_weight, pw_bias, fixed2, options)

    scale: Tensor = dw_weight
    shift: Tensor | None = beta1
    if pool_input:
        scale, shift = torch.ones_like(dw_weight, requires_grad=False), None
    elif fixed1 is not None:
        scale, shift = batch_norm.fold(dw_weight, dw_bias, fixed1)
    v: Tensor = pw_weight
    b: Tensor = beta2
    if fixed2 is not None:
        v, b = batch_norm.fold(pw_weight, pw_bias, fixed2, repeat=int(x.shape[1]) // num_splits)
    if fixed1 is not None and fixed2 is not None:
        return autograd.general_form(Inputs(x, scale, shift, v, b), options, route)
    exchange = Exchange(running1 if fixed1 is None else None, running2 if fixed2 is None else None, group)
    found = norm_autograd.norm_form(
        NormInputs(x, scale, gamma1 if fixed1 is None else None, shift, v, gamma2 if fixed2 is None else None, b),
        options, exchange, route,
        dw_bias=dw_bias if fixed1 is None else None, pw_bias=pw_bias if fixed2 is None else None,
    )  # fmt: skip
    if not accepted:
        _keep(dw_norm, exchange.running1)
        _keep(pw_norm, exchange.running2)
    return found


def plainly_valid(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_norm: nn.BatchNorm2d | Norm,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    pw_norm: nn.BatchNorm2d | Norm,
    num_splits: int,
) -> bool:
    """As `checks.accepts`, norms included: what it says of these sizes, types and devices holds for others alike."""
    device, dtype = x.device, dw_weight.dtype
    return (
        checks.accepts(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias)
        and checks.accepts_norm(device, dtype, x.shape[1], *norm_tensors(dw_norm))
        and checks.accepts_norm(device, dtype, num_splits, *norm_tensors(pw_norm))
    )


def layer_route(
    x: Tensor,
    layer: nn.Module,  # with an attribute `backend`
    dw_norm: nn.BatchNorm2d | Norm,
    pw_norm: nn.BatchNorm2d | Norm,
    *,
    pool_input: bool,
    group: Group | None,
) -> Route:
    """The route of `norm_attention` for a layer with these norms."""
    return norm_route(
        (x, *layer.parameters(), *layer.buffers()), backends.requested(layer.backend),  # type: ignore[arg-type]
        dw_batch=dw_norm.training or dw_norm.running_mean is None,
        pw_batch=pw_norm.training or pw_norm.running_mean is None,
        pool_input=pool_input, shared=group is not None,
        gradients=torch.is_grad_enabled() and any_requires_grad(x, *layer.parameters()),
    )  # fmt: skip


def authors_dtype(x: Tensor) -> torch.dtype | None:
    """What the authors' module returns where that is not x's type: that of its softmax under CUDA autocast."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_cuda and torch.is_autocast_enabled("cuda") else None


def _running(
    norm: nn.BatchNorm2d | Norm, bias: Tensor | None, mean: Tensor | None, var: Tensor | None
) -> Running | None:
    """What this call updates in training mode; counts it, as torch.nn.BatchNorm2d does."""
    if not norm.track_running_stats or mean is None or var is None:
        return None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # a plain average over all batches
        momentum = 1.0 / float(norm.num_batches_tracked.reshape(-1)[0])  # type: ignore[union-attr]
    return Running(mean, var, bias, momentum)


def _keep(norm: nn.BatchNorm2d | Norm, running: Running | None) -> None:
    """Write back what a call has updated, where that was a copy."""
    if running is not None:
        for own, updated in ((norm.running_mean, running.mean), (norm.running_var, running.var)):
            if own is not None and own is not updated:
                own.copy_(updated)


def _literal(
    eps: float,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    batch: bool,
    running: Running | None,
) -> reference.BatchNorm:
    """A norm as the reference takes it: running statistics only where they are read or updated."""
    momentum = 0.0
    if batch:
        mean, var = (None, None) if running is None else (running.mean, running.var)
        momentum = 0.0 if running is None else running.momentum
    return reference.BatchNorm(gamma, beta, mean, var, batch, momentum, eps)
