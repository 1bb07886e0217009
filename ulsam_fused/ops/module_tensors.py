"""Tensors of modules, past `Module.__getattr__`: its half a microsecond per name was a third of a call's host time."""

from typing import Any

from torch import Tensor, nn


def convolution_tensors(module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """dw_weight, dw_bias, pw_weight and pw_bias of a `ULSAM`."""
    try:
        p = module._parameters
        return p["dw_weight"], p["dw_bias"], p["pw_weight"], p["pw_bias"]  # type: ignore[return-value]
    except KeyError:  # parametrised, pruned, sharded or replicated modules hold them otherwise
        m: Any = module
        return m.dw_weight, m.dw_bias, m.pw_weight, m.pw_bias


def norms_of(module: nn.Module) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """dw_norm and pw_norm of a `ULSAM` that has them."""
    children = module._modules
    return children["dw_norm"], children["pw_norm"]  # type: ignore[return-value]


def norm_tensors(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """weight, bias, running_mean and running_var of a BatchNorm, or of what has its attributes."""
    try:
        p, b = norm._parameters, norm._buffers
        return p["weight"], p["bias"], b["running_mean"], b["running_var"]  # type: ignore[return-value]
    except (AttributeError, KeyError):
        return norm.weight, norm.bias, norm.running_mean, norm.running_var
