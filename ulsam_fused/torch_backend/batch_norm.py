"""The two BatchNorms around the operator: their running statistics, and how fixed statistics fold into its parameters.

The depthwise norm sees dw * x + bias, so its batch statistics are affine in those of x:

    mean = dw * mean(x) + bias,    var = dw^2 * var(x)

A norm with fixed statistics is an affine map, gamma * (t - mean) * r + beta with r = 1 / sqrt(var + eps), and folds
into the convolution before it. As torch.nn.BatchNorm2d: biased variance to normalise with, unbiased to keep.
"""

import torch
from torch import Tensor

Running = tuple[Tensor, Tensor, Tensor | None, float]
"""What batch statistics are blended into, in place: running mean and variance; the convolution's bias; momentum."""

Norm = tuple[Tensor, Tensor, Tensor, Tensor, float]
"""A norm with fixed statistics: gamma, beta, mean, variance, eps."""


def update_running(running: Running, mean: Tensor, var: Tensor, count: Tensor, factor: Tensor | None = None) -> None:
    """Blend in the statistics of `count` values per channel; mean, var (biased), count [C] are of factor * values."""
    running_mean, running_var, bias, momentum = running
    unbiased = var * (count / (count - 1))
    if factor is not None:
        factor = factor.to(mean.dtype)
        mean, unbiased = mean * factor, unbiased * factor.square()
    if bias is not None:
        mean = mean + bias
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(unbiased.to(running_var.dtype), momentum)


def fold(weight: Tensor, bias: Tensor | None, norm: Norm, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that includes the norm after it, differentiable in all but the statistics.

    weight [C]; bias and norm [C / repeat], each entry serving `repeat` weights. The results are at least float32.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    gamma, beta, mean, var = (t.to(dtype) for t in norm[:4])
    gain = gamma * torch.rsqrt(var + norm[4])
    shift = torch.addcmul(beta, gain, -mean if bias is None else bias.to(dtype) - mean)
    return weight.to(dtype) * (gain.repeat_interleave(repeat) if repeat > 1 else gain), shift
