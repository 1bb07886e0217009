"""Statistics of several parts of a batch together, for every backend.

A part is (count, mean, M2 = sum of squared deviations from its own mean) of each of K channels. Differences of means
are taken before they are squared, so nothing cancels where the mean is far from 0.
"""

import torch
from torch import Tensor

from .contract import Group


def combine(parts: Tensor) -> Tensor:
    """Of [P, 3, K], rows count, mean and M2: those of all parts together, [3, K]."""
    counts, means, m2s = parts.unbind(1)
    count = counts.sum(0)
    mean = means[0] + (counts * (means - means[0])).sum(0) / count
    return torch.stack((count, mean, (m2s + counts * (means - mean).square()).sum(0)))


def exchanged(parts: Tensor, group: Group | None) -> Tensor:
    """Parts [P, 3, K] of this process; with a group one part of every process."""
    return parts if group is None else group.gather(combine(parts).unsqueeze(0)).contiguous()
