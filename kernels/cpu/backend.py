"""The door of the C++ kernels for the general form. The operators allocate what they return.

See `contract.Backend` for shapes.
The mathematics stands in forward.cpp and backward.cpp. `build.problem()` says whether the operators can be had.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, is_grad_enabled

from ..contract import Forward, Gradients, Inputs, Options
from . import build

P = ParamSpec("P")
R = TypeVar("R")


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """torch.no_grad(), which takes two microseconds, where gradients are on: in an autograd.Function they are not."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_grad_enabled():
            with torch.no_grad():
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return called


@without_gradients
def forward(inputs: Inputs, options: Options) -> Forward:
    """A and lse are None unless needed."""
    num_splits, relu_u, relu_z, out_dtype, need_attention, need_lse = options[:6]
    wide = out_dtype is not None and is_wider(out_dtype, inputs.x)
    found = operator("forward")(*inputs, num_splits, relu_u, relu_z, wide, need_attention, need_lse)
    return Forward(*found) if out_dtype is None else Forward(found[0].to(out_dtype), *found[1:])


@without_gradients
def backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: Inputs,
    z: Tensor,
    lse: Tensor,
    options: Options,
) -> Gradients:
    """db is exactly 0 (or NaN) where act_z is the identity. lse is not needed here: z gives A to the last bit."""
    num_splits, relu_u, relu_z = options[:3]
    dy, d_attention = given_gradient(dy, inputs.x), given_map(d_attention, z)
    return Gradients(*operator("backward")(dy, d_attention, *inputs, z, num_splits, relu_u, relu_z))


_operators: dict[str, Callable[..., Any]] = {}


def operator(name: str) -> Callable[..., Any]:
    """One of the C++ operators; the library is compiled and loaded first if need be.

    Raises:
        RuntimeError: it cannot be had; the message says why and what to do.
    """
    found = _operators.get(name)
    if found is None:
        if problem := build.problem():
            raise RuntimeError(problem)
        found = _operators[name] = getattr(torch.ops.ulsam_fused_cpu, name).default
    return found


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_wider(out_dtype: torch.dtype, x: Tensor) -> bool:
    """Whether y is written in the type of the computation; a third type is a copy of that."""
    return out_dtype != x.dtype != compute_dtype(x)


def given_gradient(dy: Tensor | None, x: Tensor) -> Tensor | None:
    """dy in x's type or that of the computation, and in x's memory order, which the loops read vectors in."""
    if dy is None:
        return None
    dtype = dy.dtype if dy.dtype == x.dtype else compute_dtype(x)
    if dy.dtype == dtype and (dy.stride() == x.stride() or (x.stride(3) == 1 and dy.stride(3) == 1)):
        return dy
    return torch.empty_like(x, dtype=dtype).copy_(dy)


def given_map(t: Tensor | None, z: Tensor) -> Tensor | None:
    """A gradient of attention maps, dense and in the type of the computation."""
    return None if t is None else t.to(z.dtype).contiguous()
