"""The tensors of a `Call`, and what stands around its calls: tools, contexts, gradients."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.fuzz.calls import LAYOUTS, PARAMETERS, WITHOUT_WEIGHTS, Call

Outputs = dict[str, Tensor | None]
NO_GRADIENTS = ("no_grad", "inference_mode")


@dataclasses.dataclass
class Given:
    """The tensors of a call; those of a norm only in a layer."""

    x: Tensor
    dy: Tensor
    d_attention: Tensor
    parameters: dict[str, Tensor]


def given_of(call: Call) -> Given:
    dtype, device = getattr(torch, call.dtype), device_of(call)
    wide = torch.promote_types(dtype, torch.float32)
    parameter_type = torch.float32 if call.wide_parameters and dtype.itemsize == 2 else dtype
    channels = call.shape[1]

    def draw(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, dtype)

    x = _special(call, draw(*call.shape, dtype=dtype))
    dy = draw(*call.shape, dtype=getattr(torch, call.out_dtype or call.dtype))
    d_attention = draw(call.n, call.num_splits, call.h, call.w, dtype=wide)
    sizes = {
        name: call.num_splits if name in ("b", "gamma2", "beta2") else channels
        for name in PARAMETERS
        if not (name in ("shift", "b") and not getattr(call, name))
        and not (name in ("gamma1", "beta1") and call.dw_norm in WITHOUT_WEIGHTS)
        and not (name in ("gamma2", "beta2") and call.pw_norm in WITHOUT_WEIGHTS)
    }
    parameters = {name: draw(size, dtype=parameter_type) for name, size in sizes.items()}
    if call.signs != "mixed":
        parameters["scale"] = -parameters["scale"].abs() * (call.signs == "negative")
    parameters["v"] = parameters["v"] * call.gain
    if call.form == "function":
        parameters = {name: parameters[name] for name in PARAMETERS[:4] if name in parameters}
    if call.strided_parameters:
        parameters = {name: p.repeat_interleave(2)[::2] for name, p in parameters.items()}
    x, dy = (LAYOUTS.get(name, Tensor.contiguous)(t) for name, t in ((call.layout_x, x), (call.layout_dy, dy)))
    if "x" in call.negative_bit:
        x = _negative(x)
    if "dy" in call.negative_bit:
        dy = _negative(dy)
    if "parameters" in call.negative_bit:
        parameters = {name: _negative(p) for name, p in parameters.items()}
    return Given(x, dy, d_attention, parameters)


def device_of(call: Call) -> str:
    return "cuda" if call.backend == "triton" and torch.cuda.is_available() else "cpu"


def _special(call: Call, x: Tensor) -> Tensor:
    if call.special == "ties":
        return x.round()
    if call.special == "zeros":
        return x * 0
    some = (torch.rand(x.shape) < 0.1).to(x.device)
    if call.special == "denormal" and (call.shift or call.form != "function"):
        return x  # beside a shift or a mean, different x of that size are ties in float64, too
    if call.special == "denormal":
        return torch.where(some, x * torch.finfo(x.dtype).tiny, x)
    return x.masked_fill(some, float(call.special)) if call.special else x


def _negative(t: Tensor) -> Tensor:
    """The same values in a view that has the negative bit, with the same strides."""
    memory = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
    if 0 in t.stride():
        return torch._neg_view(-t)
    return torch._neg_view(memory.copy_(-t))


def _context(call: Call) -> contextlib.AbstractContextManager[Any]:
    if call.tool == "autocast":
        return torch.autocast(device_of(call), torch.bfloat16)
    if call.tool == "no_grad":
        return torch.no_grad()
    return torch.inference_mode() if call.tool == "inference_mode" else contextlib.nullcontext()


def called(call: Call, function: Callable[..., Any], *arguments: Any) -> Any:
    with _context(call):
        if call.tool == "checkpoint":
            return checkpoint(function, *arguments, use_reentrant=False)
        if call.tool == "compile":
            torch._dynamo.reset()
            return torch.compile(function, backend="eager")(*arguments)
        return function(*arguments)


def leaves_of(call: Call, given: Given) -> dict[str, Tensor]:
    """x and the parameters; those that are not frozen need a gradient."""
    tensors = {"x": given.x, **given.parameters}
    return {name: t.detach().requires_grad_(name not in call.frozen) for name, t in tensors.items()}


def gradients_of(call: Call, given: Given, outputs: tuple[Tensor, ...], leaves: dict[str, Tensor]) -> Outputs:
    """Of the leaves that need one; the outputs are y, or y and A."""
    arriving = {"y": (given.dy, None), "A": (None, given.d_attention), "both": (given.dy, given.d_attention)}
    pairs = [
        (out, gradient)
        for out, gradient in zip(outputs, arriving[call.arriving], strict=False)
        if gradient is not None and out.requires_grad
    ]
    needed = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not pairs or not needed:
        return {}
    found = torch.autograd.grad(
        [out for out, _ in pairs], list(needed.values()), [g for _, g in pairs], allow_unused=True
    )
    return dict(zip(needed, found, strict=True))
