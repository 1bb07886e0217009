"""Which way a call would take, in words."""

import importlib

from torch import Tensor

from . import backends
from .ops import checks


def explain(x: Tensor, num_splits: int) -> str:
    """Which backend and launch configuration `subspace_attention(x, ..., num_splits)` would take, and why.

    Nothing is computed. Raises as `subspace_attention` does for a bad x or num_splits.
    """
    checks.check_x(x)
    g = checks.check_num_splits(num_splits, x.shape[1], "x.shape[1]")
    n, c, h, w = x.shape
    layout = "channels_last" if _channels_last(x) else "contiguous (NCHW)" if x.is_contiguous() else "strided"
    lines = [
        f"x: [{n}, {c}, {h}, {w}] {str(x.dtype).removeprefix('torch.')}, {layout}, on {x.device}",
        f"{n * g} slabs (images x subspaces) of G = {c // g} channels, {_size(c // g * h * w * x.element_size())} each",
    ]
    requested = backends.get_backend()
    backend = backends.resolve("auto", x.device)
    lines.append(f"backend: {backend} ({_backend_reason(requested, backend, x)})")
    if backend == "triton" and x.numel():
        lines += _launches(x, g)
    return "\n".join(lines)


def _backend_reason(requested: str, backend: str, x: Tensor) -> str:
    if requested != "auto":
        return f"asked for by set_backend or {backends.ENVIRONMENT}"
    if backend == "triton":
        return "a GPU tensor, and Triton can be imported"
    if x.device.type == "cuda":
        return backends.why_not_triton(x.device) or ""
    return f"a tensor on {x.device.type}: vectorised PyTorch"


def _launches(x: Tensor, num_splits: int) -> list[str]:
    config = importlib.import_module("ulsam_fused.kernels.gpu.launching.config")
    geometry = importlib.import_module("ulsam_fused.kernels.gpu.launching.geometry")
    shape = tuple(x.shape)
    size, sms = x.element_size(), geometry.num_sms(x.device)
    arguments = (shape, num_splits, size, geometry.is_channels_last(x), sms)
    chosen = {
        "forward": config.forward_config(*arguments),
        "backward": config.backward_config(*arguments, geometry.compared_size(x.dtype)),
    }
    lines = []
    for direction, launch in chosen.items():
        lines += [
            f"{direction}: {config.regime_reason(launch, shape, num_splits, size, sms)}",
            f"  {launch}",
        ]
    return lines


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(3) == x.shape[1] != 1


def _size(size: int) -> str:
    return f"{size} bytes" if size < 1024 else f"{size / 1024:.1f} KiB"
