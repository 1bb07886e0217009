"""The two BatchNorms around the operator, for every backend: statistics of a batch in parts, running ones, fixed ones.

A part of a batch is (count, mean, M2 = sum of squared deviations from its own mean) of each of K channels. Differences
of means are taken before they are squared, so nothing cancels where the mean is far from 0.

The depthwise norm sees dw * x + bias, so its batch statistics are affine in those of x:

    mean = dw * mean(x) + bias,    var = dw^2 * var(x)

A norm with fixed statistics is an affine map, gamma * (t - mean) * r + beta with r = 1 / sqrt(var + eps), and folds
into the convolution before it. As torch.nn.BatchNorm2d: biased variance to normalise with, unbiased to keep.
"""

import torch
from torch import Tensor

from .contract import Exchange, FixedNorm, Group, LogitStatistics, Running


def update_running(running: Running, mean: Tensor, var: Tensor, count: Tensor, factor: Tensor | None = None) -> None:
    """Blend in the statistics of `count` values per channel; mean, var (biased), count [C] are of factor * values."""
    unbiased = var * (count / (count - 1))
    if factor is not None:
        factor = factor.to(mean.dtype)
        mean, unbiased = mean * factor, unbiased * factor.square()
    if running.bias is not None:
        mean = mean + running.bias.detach()
    running.mean.lerp_(mean.to(running.mean.dtype), running.momentum)
    running.var.lerp_(unbiased.to(running.var.dtype), running.momentum)


def mark_updated(exchange: Exchange) -> None:
    """Tell autograd that a kernel has written the running statistics: what it has saved of them is not what it was."""
    updated = [t for running in exchange[:2] if running is not None for t in (running.mean, running.var)]
    torch.autograd.graph.increment_version(tuple(updated))


def without_norm(z: Tensor, b: Tensor | None) -> Tensor:
    """The rows of `LogitStatistics`, [6, g], where the logits z [N, g, H, W] have no norm, but perhaps a bias [g]."""
    second = z.new_zeros(6, z.shape[1])
    statistics = LogitStatistics(*second)
    statistics.gain.fill_(1)
    statistics.rstd.fill_(1)
    if b is not None:
        statistics.offset.copy_(b)
    return second


def fold(weight: Tensor, bias: Tensor | None, norm: FixedNorm, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that includes the norm after it, differentiable in all but the statistics.

    weight [C]; bias and norm [C / repeat], each entry serving `repeat` weights. The results are at least float32.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    gamma, beta, mean, var = (t.to(dtype) for t in (norm.gamma, norm.beta, norm.mean, norm.var))
    gain = gamma * torch.rsqrt(var + norm.eps)
    shift = torch.addcmul(beta, gain, -mean if bias is None else bias.to(dtype) - mean)
    if repeat == 1:
        return weight.to(dtype) * gain, shift
    return (weight.to(dtype).reshape(-1, repeat) * gain.unsqueeze(1)).flatten(), shift


def combine(parts: Tensor) -> Tensor:
    """Of [P, 3, K], rows count, mean and M2: those of all parts together, [3, K]."""
    counts, means, m2s = parts.unbind(1)
    count = counts.sum(0)
    mean = means[0] + (counts * (means - means[0])).sum(0) / count
    return torch.stack((count, mean, (m2s + counts * (means - mean).square()).sum(0)))


def exchanged(parts: Tensor, group: Group | None) -> Tensor:
    """Parts [P, 3, K] of this process; with a group one part of every process."""
    return parts if group is None else group.gather(combine(parts).unsqueeze(0)).contiguous()
