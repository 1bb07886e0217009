"""The door of the C++ kernels for the general form: allocate the results, call the operators.

See `contract.Backend` for shapes.
The mathematics stands in forward.cpp and backward.cpp. `build.problem()` says whether the operators can be had.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import Forward, Gradients, Inputs, Options
from . import build


def forward(inputs: Inputs, options: Options) -> Forward:
    """A and lse are None unless needed."""
    if torch.is_grad_enabled():  # in an autograd.Function it is not, and the context costs microseconds
        with torch.no_grad():
            return forward(inputs, options)
    x = inputs.x
    num_splits, relu_u, relu_z, out_dtype = options.num_splits, options.relu_u, options.relu_z, options.out_dtype
    n, _, h, w = x.shape
    dtype = compute_dtype(x)
    y = torch.empty_like(x) if out_dtype is None else torch.empty_like(x, dtype=stored_dtype(x, out_dtype))
    z = torch.empty((n, num_splits, h, w), dtype=dtype, device="cpu")
    attention = torch.empty_like(z) if options.need_attention else None
    lse = torch.empty((n, num_splits), dtype=dtype, device="cpu") if options.need_lse else None
    operator("forward")(*inputs, None, y, z, attention, lse, num_splits, relu_u, relu_z, True, True)
    return Forward(y if out_dtype is None else y.to(out_dtype), attention, z, lse)


def backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: Inputs,
    z: Tensor,
    lse: Tensor,
    options: Options,
) -> Gradients:
    """db is exactly 0 (or NaN) where act_z is the identity. lse is not needed here: z gives A to the last bit."""
    backward_op = operator("backward")
    x, scale, shift, v, b = inputs
    with torch.no_grad():
        dx = torch.empty_like(x)
        dscale, dv = torch.empty_like(scale), torch.empty_like(v)
        dshift = None if shift is None else torch.empty_like(shift)
        db = None if b is None else torch.empty_like(b)
        backward_op(
            given_gradient(dy, x), given_map(d_attention, z), x, scale, shift, v, z, dx, dscale, dshift, dv, db,
            options.num_splits, options.relu_u, options.relu_z,
        )  # fmt: skip
        return Gradients(dx, dscale, dshift, dv, db)


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


def stored_dtype(x: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    """The type that y is written in: x's or that of the computation, of which any other is a copy."""
    return x.dtype if out_dtype is None or out_dtype == x.dtype else compute_dtype(x)


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
