"""Argument checks: every bad argument is a ValueError or TypeError before anything is launched or changed."""

from numbers import Integral

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
PLAIN = (Tensor, torch.nn.Parameter)  # no subclass that sees operators


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


def check_norm(norm: object) -> bool:
    """True for "batch", False for None."""
    if norm is None:
        return False
    if norm == "batch":
        return True
    raise ValueError(f'norm must be None or "batch", got {norm!r}')


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


def accepts(
    x: Tensor, dw_weight: Tensor, pw_weight: Tensor, num_splits: int, dw_bias: Tensor | None, pw_bias: Tensor | None
) -> bool:
    """Whether these are plainly valid, in as few steps as can be; a False only means that the checks below must look.

    On a CPU the checks took a tenth of the call at 8x160x7x7: what runs once per call runs from cold caches.
    """
    if type(num_splits) is not int or type(x) not in PLAIN or type(dw_weight) not in PLAIN or x.is_nested:
        return False
    shape, dtype, device, own = x.shape, x.dtype, x.device, dw_weight.dtype
    if len(shape) != 4 or x.layout is not torch.strided or dtype not in FLOATS:
        return False
    _, channels, height, width = shape
    return (
        channels > 0
        and height > 0
        and width > 0
        and num_splits > 0
        and channels % num_splits == 0
        and (own is dtype or (own is torch.float32 and dtype in HALVES))
        and _are_vectors((dw_weight, pw_weight), channels, own, device)
        and (dw_bias is None or _are_vectors((dw_bias,), channels, own, device))
        and (pw_bias is None or _are_vectors((pw_bias,), num_splits, own, device))
    )


def accepts_norm(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    weight: object,
    bias: object,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> bool:
    """Whether a BatchNorm's tensors are plainly valid, as `accepts`; dtype: of the convolutions' weights."""
    if running_mean is None or running_var is None:
        return running_mean is running_var and _are_vectors((weight, bias), channels, dtype, device)
    return (
        running_mean.dtype in FLOATS
        and running_mean.is_contiguous()
        and running_var.is_contiguous()
        and _are_vectors((running_mean, running_var), channels, running_mean.dtype, device)
        and _are_vectors((weight, bias), channels, dtype, device)
    )


def _are_vectors(tensors: tuple[object, ...], length: int, dtype: torch.dtype, device: torch.device) -> bool:
    size = (length,)
    for t in tensors:
        if not (
            type(t) in PLAIN
            and t.dtype is dtype  # type: ignore[attr-defined]
            and t.shape == size  # type: ignore[attr-defined]
            and t.device == device  # type: ignore[attr-defined]
            and t.layout is torch.strided  # type: ignore[attr-defined]
        ):
            return False
    return True


def check_x(x: object) -> Tensor:
    """x as a floating-point tensor [N, C, H, W] with C, H, W >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"x must be a dense tensor, got layout {x.layout}")
    if x.is_nested:
        raise TypeError("x must be a dense tensor, got a nested one")
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions [N, C, H, W], got {x.dim()} with shape {list(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be one of {_names(FLOATS)}, got {x.dtype}")
    for name, size in zip("CHW", x.shape[1:], strict=True):
        if size == 0:
            raise ValueError(f"x must have {name} of at least 1, got shape {list(x.shape)}")
    return x


def check_arguments(
    x: object, dw_weight: object, pw_weight: object, num_splits: object, dw_bias: object, pw_bias: object
) -> int:
    """num_splits as an int, all tensors fitting x."""
    x = check_x(x)
    channels = x.shape[1]
    lengths = {len(w) if isinstance(w, Tensor) and w.dim() == 1 else channels for w in (dw_weight, pw_weight)}
    if channels not in lengths and len(lengths) == 1:  # the weights agree, so x is another layer's
        raise ValueError(f"x must have {lengths.pop()} channels, as the weights have, got {list(x.shape)}")
    g = check_num_splits(num_splits, channels, "x.shape[1]")
    parameters: dict[str, tuple[object, int]] = {"dw_weight": (dw_weight, channels), "pw_weight": (pw_weight, channels)}
    if dw_bias is not None:
        parameters["dw_bias"] = (dw_bias, channels)
    if pw_bias is not None:
        parameters["pw_bias"] = (pw_bias, g)
    check_parameters(x, parameters)
    return g


def check_parameters(x: Tensor, parameters: dict[str, tuple[object, int]]) -> None:
    """Each parameter is a vector of its length on x's device; all share a type: x's, or float32 beside a 16-bit x."""
    first: tuple[str, torch.dtype] | None = None
    for name, (p, length) in parameters.items():
        if not isinstance(p, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(p).__name__}")
        if p.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {p.layout}")
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


def check_norm_tensors(
    x: Tensor, dtype: torch.dtype, channels: int, name: str, weight: object, bias: object, *running: Tensor | None
) -> None:
    """A BatchNorm's tensors are vectors of its channels on x's device: parameters of the convolutions' type or
    float32, running mean and variance of any floating type."""
    for part, p in (("weight", weight), ("bias", bias), *zip(("running_mean", "running_var"), running, strict=True)):
        if p is None and part.startswith("running"):
            continue
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}.{part} must be a torch.Tensor, got {type(p).__name__}")
        if p.shape != (channels,):
            raise ValueError(f"{name}.{part} must have shape [{channels}], got {list(p.shape)}")
        if p.device != x.device:
            raise ValueError(f"{name}.{part} must be on x's device {x.device}, got {p.device}")
        if part.startswith("running"):
            if p.dtype not in FLOATS:
                raise TypeError(f"{name}.{part} must be one of {_names(FLOATS)}, got {p.dtype}")
        elif p.dtype != dtype and not (p.dtype == torch.float32 and dtype in HALVES):
            raise TypeError(f"{name}.{part} must be {dtype} as the convolutions or torch.float32, got {p.dtype}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)
