"""Tensors of modules, past `Module.__getattr__`: its half a microsecond per name was a third of a call's host time."""

from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes that hold a module's hooks, which want the module itself to be called."""

SETTINGS = itemgetter("training", "eps", "momentum", "track_running_stats")
"""Of a BatchNorm's `__dict__`."""

Settings = tuple[bool, float, float | None, bool]
"""What SETTINGS gets."""

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Norm(NamedTuple):
    """What the operator reads of a `torch.nn.BatchNorm2d` and updates in it, under the same names."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    eps: float
    momentum: float | None
    track_running_stats: bool
    num_batches_tracked: Tensor | None  # of several elements where it stands for several norms


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


def norm_tensors(norm: nn.BatchNorm2d | Norm) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """weight, bias, running_mean and running_var of a BatchNorm, or of what has its attributes."""
    if type(norm) is Norm:
        return norm[:4]
    try:
        p, b = norm._parameters, norm._buffers  # type: ignore[union-attr]
        return p["weight"], p["bias"], b["running_mean"], b["running_var"]  # type: ignore[return-value]
    except (AttributeError, KeyError):
        return norm.weight, norm.bias, norm.running_mean, norm.running_var


def overridden(module: Any) -> bool:
    """Whether somebody wants this very module to be called: by hooks, or by a `forward` of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def described(layer: nn.Module | None) -> str:
    """Its class and options; those of a wrapper may take lines."""
    return "absent" if layer is None else f"{type(layer).__name__}({layer.extra_repr()})"


def is_plain_norm(norm: Any) -> bool:
    """A BatchNorm that nobody has touched; a False only means that `is_batch_norm` and `overridden` must look."""
    return (
        type(norm) in _BATCH_NORMS
        and norm._parameters.get("weight") is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        and "forward" not in norm.__dict__
    )


def is_batch_norm(norm: nn.Module) -> bool:
    """A BatchNorm2d or SyncBatchNorm with weights, which does what its class does."""
    return (
        isinstance(norm, _BATCH_NORMS)
        and type(norm).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
        and norm.weight is not None
        and norm.bias is not None
    )


def is_frozen_norm(norm: Any) -> bool:
    """The frozen BatchNorm of torchvision, timm and detectron2, which has no other mode; by its name and buffers."""
    names = ("weight", "bias", "running_mean", "running_var")
    return (
        type(norm).__name__ == "FrozenBatchNorm2d" and hasattr(norm, "eps") and all(n in norm._buffers for n in names)
    )


def settings_of(norm: Any) -> Settings:
    """As SETTINGS."""
    if is_frozen_norm(norm):
        return False, norm.eps, None, True
    return norm.training, norm.eps, norm.momentum, norm.track_running_stats


def as_batch_norm(norm: Any) -> Any:
    """The norm itself, or a frozen one as the operator takes it."""
    if not is_frozen_norm(norm):
        return norm
    return Norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, *settings_of(norm), None)
