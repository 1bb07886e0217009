"""The authors' form, with its two BatchNorms, as a function, and which way a call takes.

both norms fixed       they fold into the general form: one launch
batch statistics       norm_autograd.py
plain PyTorch needed   reference.py
"""

from typing import Any

import torch
from torch import Tensor, nn

from .. import backends, reference
from ..torch_backend import batch_norm
from ..torch_backend.batch_norm import Norm, Running
from . import autograd, checks, norm_autograd, tracing
from . import norm_registration as norm_ops
from .module_tensors import norm_tensors


def norm_attention(
    x: Tensor,  # [N, C, H, W]
    dw_weight: Tensor,  # [C]
    dw_bias: Tensor | None,  # [C]
    dw_norm: nn.BatchNorm2d,  # of C channels; read, never called
    pw_weight: Tensor,  # [C]
    pw_bias: Tensor | None,  # [g]
    pw_norm: nn.BatchNorm2d,  # of g channels
    num_splits: int,
    *,
    relu: bool,
    pool_input: bool = False,  # the authors' code before October 2020: u changes nothing but dw_norm's statistics
    update: bool = True,  # running statistics, where norms are in training mode
    need_attention: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    group: Any = None,  # distributed.Group, with which statistics of the batch are shared
) -> tuple[Tensor, Tensor | None]:
    """y [N,C,H,W], A [N,g,H,W] (None or empty unless needed). A norm behaves as `torch.nn.BatchNorm2d` in its mode."""
    gamma1, beta1, mean1, var1 = norm_tensors(dw_norm)
    gamma2, beta2, mean2, var2 = norm_tensors(pw_norm)
    if not checks.accepts(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias):
        num_splits = checks.check_arguments(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias)
    if not checks.accepts_norm(x, dw_weight.dtype, gamma1, beta1, x.shape[1]):
        checks.check_norm_parameters(x, dw_weight.dtype, gamma1, beta1, x.shape[1], "dw_norm")
    if not checks.accepts_norm(x, dw_weight.dtype, gamma2, beta2, num_splits):
        checks.check_norm_parameters(x, dw_weight.dtype, gamma2, beta2, num_splits, "pw_norm")
    checks.check_out_dtype(out_dtype)
    backend = backends.requested(backend)
    # by torch.nn.BatchNorm2d's rule
    dw_batch, pw_batch = dw_norm.training or mean1 is None, pw_norm.training or mean2 is None
    if (dw_batch or pw_batch) and x.numel() == x.shape[1] and group is None:  # as torch.nn.functional.batch_norm
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    running1 = _running(dw_norm, dw_bias) if update and dw_norm.training else None
    running2 = _running(pw_norm, pw_bias) if update and pw_norm.training else None

    if (backend == "reference" or tracing.needs_plain_pytorch()) and group is None:
        return reference.batch_norm_form(
            x, dw_weight, dw_bias, _literal(dw_norm, dw_batch, running1),
            pw_weight, pw_bias, _literal(pw_norm, pw_batch, running2),
            num_splits, relu_u=relu, relu_z=relu, pool_input=pool_input, out_dtype=out_dtype,
        )  # fmt: skip
    if x.shape[0] == 0 and group is None:  # no statistics: nothing is updated, and every gradient is 0
        dw_batch = pw_batch = False
    if pool_input and dw_batch:
        if running1 is not None:
            mean, var, count = norm_ops.moments(x.detach(), backend, group)
            batch_norm.update_running(running1, mean, var, count, dw_weight.detach())
        dw_batch = False

    fixed1 = None if dw_batch else _fixed(gamma1, beta1, mean1, var1, dw_norm.eps)
    fixed2 = None if pw_batch else _fixed(gamma2, beta2, mean2, var2, pw_norm.eps)
    parameters = (x, dw_weight, dw_bias, gamma1, beta1, pw_weight, pw_bias, gamma2, beta2)
    if not dw_batch and not pw_batch and not _needs_gradient(parameters):
        folded_forward = norm_ops.folded_forward(x, backend)
        if folded_forward is not None:
            return folded_forward(  # type: ignore[no-any-return]
                x, None if pool_input else dw_weight, dw_bias, fixed1, pw_weight, pw_bias, fixed2, num_splits,
                relu and not pool_input, relu, out_dtype, need_attention,
            )  # fmt: skip

    scale: Tensor
    shift: Tensor | None
    if pool_input:
        scale, shift = torch.ones_like(dw_weight, requires_grad=False), None
    elif fixed1 is None:
        scale, shift = dw_weight, beta1
    else:
        scale, shift = batch_norm.fold(dw_weight, dw_bias, fixed1)
    v: Tensor = pw_weight
    b: Tensor = beta2
    if fixed2 is not None:
        v, b = batch_norm.fold(pw_weight, pw_bias, fixed2, repeat=x.shape[1] // num_splits)
    relu_u = relu and not pool_input
    if not dw_batch and not pw_batch:
        return autograd.general_form(
            x, scale, shift, v, b, num_splits, relu_u, relu, out_dtype, need_attention, backend
        )
    return norm_autograd.norm_form(
        x, scale, gamma1 if dw_batch else None, shift, v, gamma2 if pw_batch else None, b,
        num_splits, dw_norm.eps, pw_norm.eps, relu_u, relu, out_dtype, need_attention, backend,
        cancelled=(dw_bias if dw_batch else None, pw_bias if pw_batch else None),
        running1=running1 if dw_batch else None, running2=running2 if pw_batch else None, group=group,
    )  # fmt: skip


def authors_dtype(x: Tensor) -> torch.dtype | None:
    """What the authors' module returns where that is not x's type: that of its softmax under CUDA autocast."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_cuda and torch.is_autocast_enabled("cuda") else None


def _running(norm: nn.BatchNorm2d, bias: Tensor | None) -> Running | None:
    """What this call updates in training mode; counts it, as torch.nn.BatchNorm2d does."""
    if not norm.track_running_stats:
        return None
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # a plain average over all batches
        momentum = 1.0 / float(norm.num_batches_tracked)  # type: ignore[arg-type]
    return mean, var, None if bias is None else bias.detach(), momentum


def _fixed(gamma: Tensor, beta: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> Norm:
    if mean is None or var is None:  # only where there is no image to take statistics from
        mean, var = torch.zeros_like(beta), torch.ones_like(beta)
    return gamma, beta, mean, var, eps


def _literal(norm: nn.BatchNorm2d, batch: bool, running: Running | None) -> reference.BatchNorm:
    """A norm as the reference takes it: running statistics only where they are read or updated."""
    mean, var = norm.running_mean, norm.running_var
    if batch:
        mean, var = (None, None) if running is None else running[:2]
    return reference.BatchNorm(
        norm.weight, norm.bias, mean, var, batch, 0.0 if running is None else running[3], norm.eps
    )


def _needs_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
