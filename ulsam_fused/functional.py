"""The operator as a function, and which way a call takes."""

from typing import Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import backends, reference
from .kernels.contract import Inputs, Options
from .ops import autograd, checks, values
from .ops.routes import any_requires_grad, general_route


@overload
def subspace_attention(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    num_splits: int,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    *,
    activation: str | None = None,
    return_attention: Literal[False] = False,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def subspace_attention(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    num_splits: int,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    *,
    activation: str | None = None,
    return_attention: Literal[True],
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def subspace_attention(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    num_splits: int,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    *,
    activation: str | None = None,
    return_attention: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Ultra-lightweight subspace attention (ULSAM), all subspaces and stages fused.

    The channels are cut into `num_splits` contiguous subspaces of G = C / num_splits. Per image and subspace, with
    act the identity or ReLU, and W(p) the 3x3 window around pixel p (stride 1, padding 1 that never wins)::

        u[c,q] = act(dw_weight[c] * x[c,q] + dw_bias[c])       depthwise 1x1 convolution
        m[c,p] = max over q in W(p) of u[c,q]                  max-pool
        z[p]   = act(sum_c pw_weight[c] * m[c,p] + pw_bias)    pointwise convolution to one channel
        A      = softmax of z over all H*W pixels
        y[c,p] = (1 + A[p]) * x[c,p]

    Half precision: A is about 1 / (H*W), so in bfloat16 (from 28x28 maps) and float16 (from 112x112) nearly every
    y rounds to x and the layer is erased. `out_dtype=torch.float32` keeps what 16 bits round away.

    Args:
        x: [N, C, H, W], float16, bfloat16, float32 or float64, any strides; contiguous and channels_last are fastest.
        dw_weight: [C], depthwise weights; x's type, or float32 beside a 16-bit x. All parameters share one type.
        pw_weight: [C], pointwise weights.
        num_splits: number of subspaces; divides C.
        dw_bias: [C] or None.
        pw_bias: [num_splits] or None. Without an activation the softmax does not see it and its gradient is 0.
        activation: None, or "relu" after both convolutions.
        return_attention: also return A, differentiable.
        out_dtype: type of y; x's type by default.
        backend: "auto", "triton", "cpp", "torch" or "reference"; see `explain`.

    Returns:
        y [N, C, H, W] with the strides of `torch.empty_like(x)`; with `return_attention` the pair (y, A), where
        A is [N, num_splits, H, W], float32 (float64 for float64 x), and sums to 1 over the pixels.

    Raises:
        ValueError, TypeError: a bad argument, before anything is launched.
        RuntimeError: the backend asked for cannot serve this device; the message says why.

    Source: Saini et al., WACV 2020, https://arxiv.org/abs/2006.15102.
    """
    relu = activation is not None and checks.check_activation(activation)
    inputs = Inputs(x, dw_weight, dw_bias, pw_weight, pw_bias)
    g = num_splits
    accepted = checks.accepts(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias)
    if not accepted:
        if has_torch_function(inputs):
            return handle_torch_function(
                subspace_attention, inputs,  # type: ignore[arg-type]
                x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias,
                activation=activation, return_attention=return_attention, out_dtype=out_dtype, backend=backend,
            )  # fmt: skip
        x, parameters, _ = values.settled(x, [dw_weight, dw_bias, pw_weight, pw_bias], [])
        inputs = Inputs(x, *parameters)
        _, dw_weight, dw_bias, pw_weight, pw_bias = inputs
        g = checks.check_arguments(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias)
    if out_dtype is not None:
        checks.check_out_dtype(out_dtype)
    route = general_route(inputs, backends.requested(backend), accepted)
    attention: Tensor | None
    if route.way == "reference":
        y, attention = reference.general_form(*inputs, g, relu_u=relu, relu_z=relu, out_dtype=out_dtype)
    else:
        gradients = torch.is_grad_enabled() and any_requires_grad(*inputs)
        options = Options(g, relu, relu, out_dtype, return_attention, gradients, 0.0, 0.0, route.backend)
        y, attention = autograd.general_form(inputs, options, route)
    if not return_attention:
        return y
    assert attention is not None
    return y, attention
