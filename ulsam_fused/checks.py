"""Argument checks: every bad argument is a ValueError or TypeError before anything is launched or changed."""

from numbers import Integral

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)


def check_num_splits(num_splits: object, channels: int, channels_name: str) -> int:
    """num_splits as an int that divides the channels."""
    if isinstance(num_splits, bool) or not isinstance(num_splits, Integral):
        raise TypeError(f"num_splits must be an integer, got {num_splits!r} of type {type(num_splits).__name__}")
    g = int(num_splits)
    if g < 1:
        raise ValueError(f"num_splits must be at least 1, got {g}")
    if channels % g:
        raise ValueError(f"num_splits must divide the channels: {channels_name} = {channels} is not divisible by {g}")
    return g


def check_channels(channels: object) -> int:
    """channels as a positive int."""
    if isinstance(channels, bool) or not isinstance(channels, Integral):
        raise TypeError(f"channels must be an integer, got {channels!r} of type {type(channels).__name__}")
    if int(channels) < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    return int(channels)


def check_norm(norm: object) -> None:
    if norm is not None:
        raise ValueError(f"norm must be None, got {norm!r}")


def check_activation(activation: object) -> bool:
    """True for "relu", False for None."""
    if activation is None:
        return False
    if activation == "relu":
        return True
    raise ValueError(f'activation must be None or "relu", got {activation!r}')


def check_out_dtype(out_dtype: object) -> None:
    if out_dtype is None:
        return
    if not isinstance(out_dtype, torch.dtype):
        raise TypeError(
            f"out_dtype must be a torch.dtype or None, got {out_dtype!r} of type {type(out_dtype).__name__}"
        )
    if out_dtype not in FLOATS:
        raise ValueError(f"out_dtype must be one of {_names(FLOATS)}, got {out_dtype}")


def check_x(x: object) -> Tensor:
    """x as a floating-point tensor [N, C, H, W] with C, H, W >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"x must be a dense tensor, got layout {x.layout}")
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions [N, C, H, W], got {x.dim()} with shape {list(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be one of {_names(FLOATS)}, got {x.dtype}")
    for name, size in zip("CHW", x.shape[1:], strict=True):
        if size == 0:
            raise ValueError(f"x must have {name} of at least 1, got shape {list(x.shape)}")
    return x


def check_parameters(x: Tensor, parameters: dict[str, tuple[object, int]]) -> None:
    """Each parameter is a vector of its length on x's device; all share a type: x's, or float32 beside a 16-bit x."""
    first: tuple[str, torch.dtype] | None = None
    for name, (p, length) in parameters.items():
        if not isinstance(p, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(p).__name__}")
        if p.dim() != 1 or p.shape[0] != length:
            raise ValueError(f"{name} must have shape [{length}], got {list(p.shape)}")
        if p.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {p.device}")
        if first is not None and p.dtype != first[1]:
            raise TypeError(f"{name} must have the type of {first[0]}, {first[1]}, got {p.dtype}")
        if p.dtype != x.dtype and not (p.dtype == torch.float32 and x.dtype in HALVES):
            allowed = f"{x.dtype} as x" + (" or torch.float32" if x.dtype in HALVES else "")
            raise TypeError(f"{name} must be {allowed}, got {p.dtype}")
        first = first or (name, p.dtype)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)
