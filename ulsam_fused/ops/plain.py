"""The operators in a few calls of PyTorch, for who must see through them: ONNX, `torch.jit.trace`, `uf.decompositions`.

Arguments and results are those of the registered operators, and autograd differentiates through. No step depends on
the size of a map or of the batch, so nothing in an exported graph computes shapes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.contract import (
    Forward,
    Inputs,
    InputStatistics,
    LogitStatistics,
    NormForward,
    NormInputs,
    Options,
)
from ..torch_backend.primitives import compute_dtype, per_channel, without_autocast


def forward(inputs: Inputs, options: Options) -> Forward:
    """The general form; see `contract.Backend`."""
    x, scale, shift, v, b = _in_maps_type(inputs)
    z = _logits(x, scale, shift, v, b, options)
    return Forward(*_outputs(inputs.x, x, z, z, options))


def norm_forward(inputs: NormInputs, options: Options) -> NormForward:
    """With the statistics of this batch; see `contract.NormBackend`. It updates nothing."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = _in_maps_type(inputs)
    scale, shift, first = dw, beta1, x.new_empty(0)
    if gamma1 is not None:
        mean, var, count = moments(x)
        rstd = torch.rsqrt(dw.square() * var + options.eps1)
        scale = gamma1 * dw * rstd
        shift = beta1 - scale * mean
        first = torch.stack(InputStatistics(scale, mean, rstd, var, count))
    z = _logits(x, scale, shift, pw, None, options)
    if gamma2 is None:
        gain = x.new_ones(options.num_splits)
        nothing = torch.zeros_like(gain)
        of_z = LogitStatistics(gain, nothing if beta2 is None else beta2, nothing, gain, nothing, nothing)
    else:
        mean, var, count = moments(z)
        rstd = torch.rsqrt(var + options.eps2)
        gain = gamma2 * rstd
        of_z = LogitStatistics(gain, beta2 - gain * mean, mean, rstd, var, count)
    normalised = per_channel(of_z.gain) * z + per_channel(of_z.offset)
    y, attention, _, lse = _outputs(inputs.x, x, z, normalised, options)
    return NormForward(y, attention, z, lse, first, torch.stack(of_z))


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of every channel: [C] each, of the map's type."""
    var, mean = torch.var_mean(x.to(compute_dtype(x)), (0, 2, 3), correction=0)
    return mean, var, torch.full_like(mean, x.shape[0] * x.shape[2] * x.shape[3])


def _logits(x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None, options: Options) -> Tensor:
    u = x * per_channel(scale)
    if shift is not None:
        u = u + per_channel(shift)
    m = F.max_pool2d(u.relu() if options.relu_u else u, 3, 1, 1)
    with without_autocast(x):
        return F.conv2d(m, v.view(options.num_splits, -1, 1, 1), b, groups=options.num_splits)


def _outputs(
    given: Tensor, x: Tensor, z: Tensor, normalised: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, A, z, lse. The softmax is taken in steps, because over a flattened map it would need the map's shape."""
    logits = normalised.relu() if options.relu_z else normalised
    highest = logits.amax((2, 3), keepdim=True)
    powers = (logits - highest).exp()
    total = powers.sum((2, 3), keepdim=True)
    attention = powers / total
    channels = int(x.shape[1])  # torch.jit.trace would compute with it
    subspaces = torch.arange(channels, device=x.device).div(channels // options.num_splits, rounding_mode="floor")
    y = x + x * attention.index_select(1, subspaces)
    return y.to(options.out_dtype or given.dtype), attention, z, (highest + total.log()).flatten(1)


def _in_maps_type(tensors: Inputs | NormInputs) -> list[Any]:
    dtype = compute_dtype(tensors.x)
    return [None if t is None else t.to(dtype) for t in tensors]
