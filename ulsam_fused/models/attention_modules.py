"""The attention modules that the paper compares ULSAM with, as they were published; used for counting.

All take x [N, C, H, W] and return the same shape. Options are those of each paper's main experiments.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import ULSAM


class NonLocal(nn.Module):
    """The embedded Gaussian form with C/2 channels inside, no subsampling, and a BatchNorm at the end.

    Source: Wang et al., CVPR 2018, https://arxiv.org/abs/1711.07971.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))
        attention = torch.softmax(theta.mT @ phi, dim=2)  # [N, HW, HW]
        y = (g @ attention.mT).unflatten(2, x.shape[2:])
        return x + self.out(y)  # type: ignore[no-any-return]


class DoubleAttention(nn.Module):
    """A²-Net: gathers c_n descriptors of c_m features, and distributes them to the pixels; c_m = c_n = C/4.

    Source: Chen et al., NeurIPS 2018, https://arxiv.org/abs/1810.11579.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.features, self.gather, self.distribute = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, v = (conv(x).flatten(2) for conv in (self.features, self.gather, self.distribute))
        descriptors = a @ torch.softmax(b, dim=2).mT  # [N, c_m, c_n]
        y = (descriptors @ torch.softmax(v, dim=1)).unflatten(2, x.shape[2:])
        return x + self.out(y)  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """A weight for each channel; reduction 16.

    Source: Hu et al., CVPR 2018, https://arxiv.org/abs/1709.01507.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]


class BAM(nn.Module):
    """Weights for channels and pixels; reduction 16, two 3x3 convolutions of dilation 4.

    Source: Park et al., BMVC 2018, https://arxiv.org/abs/1807.06514.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 16
        self.channel = nn.Sequential(
            nn.Linear(channels, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Linear(inner, channels)
        )
        self.spatial = nn.Sequential(_norm_relu(nn.Conv2d(channels, inner, 1)))
        for _ in range(2):
            self.spatial.append(_norm_relu(nn.Conv2d(inner, inner, 3, padding=4, dilation=4)))
        self.spatial.append(nn.Conv2d(inner, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel(x.mean((2, 3)))[:, :, None, None]
        return x * (1 + torch.sigmoid(channel + self.spatial(x)))


class CBAM(nn.Module):
    """Weights for channels, then for pixels; reduction 16, a 7x7 convolution. One perceptron sees mean and maximum.

    Source: Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = _mlp(channels)
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(x.mean((2, 3))) + self.mlp(F.adaptive_max_pool2d(x, 1).flatten(1))
        x = x * torch.sigmoid(pooled)[:, :, None, None]
        maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))


MODULES: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "non-local": (NonLocal, "embedded Gaussian, C/2 inside, no subsampling"),
    "A²-Net": (DoubleAttention, "c_m = c_n = C/4"),
    "SE": (SqueezeExcitation, "reduction 16"),
    "BAM": (BAM, "reduction 16, dilation 4"),
    "CBAM": (CBAM, "reduction 16, 7x7 convolution"),
    "ULSAM": (ULSAM, "any number of subspaces"),
}
"""Name -> how to build one from a number of channels, and its options in words."""


def _mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels // 16), nn.ReLU(), nn.Linear(channels // 16, channels))


def _norm_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())
