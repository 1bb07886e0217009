"""Which way a call would take, in words."""

import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from torch import Tensor, nn

from . import backends
from .ops import checks
from .ops.routes import Route, general_route

_WAYS = {
    "direct": "the backend itself, past PyTorch's dispatcher",
    "operator": "the registered operator, since something traces or watches this call",
    "plain": "eager PyTorch in few steps, for an exporter",
    "reference": "eager PyTorch, one subspace after the other",
}


class _Layer(Protocol):
    channels: int
    num_splits: int
    backend: str

    def route(self, x: Tensor) -> Route: ...

    def problem(self) -> str | None: ...

    def joins(self, x: Tensor) -> str | None: ...


def explain(x: Tensor, num_splits_or_layer: int | nn.Module) -> str:
    """Which backend and launches a call would take, and why. Nothing is computed.

    Args:
        x: [N, C, H, W], the input of the call.
        num_splits_or_layer: of `subspace_attention(x, ..., num_splits)`; or a layer of this package, whose norms,
            mode and backend are then looked at, too.

    Raises:
        ValueError, TypeError: a bad x or num_splits, as the call itself, or a module that is no layer of this package.
        RuntimeError: the backend that the call asks for cannot serve it.
    """
    checks.check_x(x)
    if isinstance(num_splits_or_layer, nn.Module):
        if not hasattr(num_splits_or_layer, "route"):
            kind = type(num_splits_or_layer).__name__
            raise TypeError(f"num_splits_or_layer must be an integer or a layer of ulsam_fused, got {kind}")
        layer = cast(_Layer, num_splits_or_layer)
        if x.shape[1] != layer.channels:
            raise ValueError(f"x must have {layer.channels} channels, as the layer has, got {list(x.shape)}")
        num_splits, asked, route = layer.num_splits, layer.backend, layer.route(x)
        problem, joins = layer.problem(), layer.joins(x)
    else:
        problem = joins = None
        num_splits, asked, route = num_splits_or_layer, "auto", general_route((x,), backends.requested("auto"))
    g = checks.check_num_splits(num_splits, x.shape[1], "x.shape[1]")
    n, c, h, w = x.shape
    layout = "channels_last" if _channels_last(x) else "contiguous (NCHW)" if x.is_contiguous() else "strided"
    lines = [
        f"x: [{n}, {c}, {h}, {w}] {str(x.dtype).removeprefix('torch.')}, {layout}, on {x.device}",
        f"{n * g} slabs (images x subspaces) of G = {c // g} channels, {_size(c // g * h * w * x.element_size())} each",
    ]
    if problem is not None:
        lines.append(f"way: its layers are called one by one in eager PyTorch, several times slower, since {problem}")
        return "\n".join(lines)
    backend = "reference" if route.way in ("reference", "plain") else backends.resolve(route.backend, x.device)
    lines.append(f"backend: {backend} ({_backend_reason(asked, route, backend, x)})")
    lines.append(f"way: {_WAYS[route.way]}")
    if joins is not None:
        lines.append(f"parameters: joined into vectors first, since {joins}")
    if route.dw_norm is not None:
        lines += _norms(route)
    if backend == "triton" and x.numel():
        lines += _launches(x, g, route)
    return "\n".join(lines)


def _backend_reason(asked: str, route: Route, backend: str, x: Tensor) -> str:
    if route.backend != "auto":
        if backend != route.backend:
            return "transforms and exporters see through plain PyTorch only"
        return "asked for by the layer" if asked != "auto" else f"asked for by set_backend or {backends.ENVIRONMENT}"
    if backend == "triton":
        return "a GPU tensor, and Triton can be imported"
    if backend == "reference":
        return "transforms and exporters see through plain PyTorch only"
    if x.device.type == "cuda":
        return backends.why_not_triton(x.device) or ""
    if backend == "cpp":
        return "a CPU tensor, and the C++ kernels are compiled"
    if x.device.type == "cpu":
        return backends.why_not_cpp(x.device) or ""
    return f"a tensor on {x.device.type}: vectorised PyTorch"


def _norms(route: Route) -> Iterator[str]:
    statistics = {"batch": "statistics of this batch", "fixed": "running statistics"}
    assert route.dw_norm is not None
    assert route.pw_norm is not None
    yield f"norms: dw_norm {statistics[route.dw_norm]}, pw_norm {statistics[route.pw_norm]}"
    if route.way == "reference":
        return
    if "batch" in (route.dw_norm, route.pw_norm):
        yield "  passes: " + "moments of x, " * (route.dw_norm == "batch") + "logits and their moments, reweighting"
    elif route.folded:
        yield "  both fold into the convolutions, inside the backend's own launch"
    else:
        yield "  both fold into the convolutions, by PyTorch, which takes their gradients"


def _launches(x: Tensor, num_splits: int, route: Route) -> Iterator[str]:
    config = importlib.import_module("ulsam_fused.kernels.gpu.launching.config")
    geometry = importlib.import_module("ulsam_fused.kernels.gpu.launching.geometry")
    shape = tuple(x.shape)
    size, sms = x.element_size(), geometry.num_sms(x.device)
    channels_last = geometry.is_channels_last(x)
    arguments = (shape, num_splits, size, channels_last, sms)
    batch = "batch" in (route.dw_norm, route.pw_norm)
    if route.dw_norm == "batch":
        yield f"moments of x:\n  {config.moments_config(shape, size, channels_last, sms)}"
    forward = config.norm_forward_config(*arguments) if batch else config.forward_config(*arguments)
    backward = config.backward_config(*arguments, geometry.compared_size(x.dtype))
    for direction, launch in (("forward", forward), ("backward", backward)):
        if batch:
            yield f"{direction}: {'strips of rows' if launch.split else 'a program per slab'}\n  {launch}"
        else:
            yield f"{direction}: {config.regime_reason(launch, shape, num_splits, size, sms)}\n  {launch}"


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(3) == x.shape[1] != 1


def _size(size: int) -> str:
    return f"{size} bytes" if size < 1024 else f"{size / 1024:.1f} KiB"
