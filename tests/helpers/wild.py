"""Modules like those in public copies of ULSAM, written anew: the same layers under other names and classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubSpace(nn.Module):
    """The authors' names; `legacy` is their code before October 2020."""

    def __init__(self, nin: int, legacy: bool = False, bias: bool = True, momentum: float | None = 0.9) -> None:
        super().__init__()
        self.legacy = legacy
        self.conv_dws = nn.Conv2d(nin, nin, kernel_size=1, stride=1, padding=0, groups=nin, bias=bias)
        self.bn_dws = nn.BatchNorm2d(nin, momentum=momentum)
        self.relu_dws = nn.ReLU(inplace=False)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.conv_point = nn.Conv2d(nin, 1, kernel_size=1, stride=1, padding=0, groups=1, bias=bias)
        self.bn_point = nn.BatchNorm2d(1, momentum=momentum)
        self.relu_point = nn.ReLU(inplace=False)
        self.softmax = nn.Softmax(dim=2)

    def logits(self, x: Tensor) -> Tensor:
        out = self.relu_dws(self.bn_dws(self.conv_dws(x)))
        out = self.maxpool(x if self.legacy else out)
        logits: Tensor = self.relu_point(self.bn_point(self.conv_point(out)))
        return logits

    def attend(self, logits: Tensor) -> Tensor:
        maps: Tensor = self.softmax(logits.flatten(2))
        return maps.view_as(logits)

    def forward(self, x: Tensor) -> Tensor:
        out = self.attend(self.logits(x))
        out = torch.mul(out.expand_as(x), x)
        out += x
        return out


class ULSAM(nn.Module):
    """The authors' signature: nout, h and w are stored and not used."""

    def __init__(self, nin: int, nout: int, h: int, w: int, num_splits: int, **options: Any) -> None:
        super().__init__()
        self.nin, self.nout, self.h, self.w, self.num_splits = nin, nout, h, w, num_splits
        self.subspaces = nn.ModuleList([SubSpace(nin // num_splits, **options) for _ in range(num_splits)])

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.chunk(x, self.num_splits, dim=1)
        return torch.cat([self.subspaces[i](chunk) for i, chunk in enumerate(chunks)], dim=1)


class ShortULSAM(ULSAM):
    """With two arguments."""

    def __init__(self, nin: int, num_splits: int, **options: Any) -> None:
        super().__init__(nin, 0, 0, 0, num_splits, **options)


class Branch(nn.Module):
    """Other names, one ReLU for both places, functions for the rest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.act = nn.ReLU(inplace=True)
        self.point = nn.Conv2d(channels, 1, 1)
        self.norm2 = nn.BatchNorm2d(1, eps=1e-2, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.max_pool2d(self.act(self.norm1(self.depth(x))), 3, 1, 1)
        z = self.act(self.norm2(self.point(z)))
        return x * (1 + F.softmax(z.flatten(2), dim=-1).reshape(z.shape))


class ULSAMBlock(nn.Module):
    """With patch sizes that are not used, and another name for the subspaces."""

    def __init__(self, in_channels: int, out_channels: int, patch_h: int, patch_w: int, num_splits: int) -> None:
        super().__init__()
        self.patch = (patch_h, patch_w)
        self.branches = nn.Sequential(*(Branch(in_channels // num_splits) for _ in range(num_splits)))

    def forward(self, x: Tensor) -> Tensor:
        chunks = x.split(x.shape[1] // len(self.branches), dim=1)
        return torch.cat([branch(chunk) for branch, chunk in zip(self.branches, chunks, strict=True)], dim=1)


class NestedSubSpace(nn.Module):
    """Convolutions without bias, each with its norm and activation in an nn.Sequential."""

    def __init__(self, nin: int) -> None:
        super().__init__()
        self.dws = nn.Sequential(nn.Conv2d(nin, nin, 1, groups=nin, bias=False), nn.BatchNorm2d(nin), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.point = nn.Sequential(nn.Conv2d(nin, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.point(self.pool(self.dws(x)))
        return x + x * z.flatten(2).softmax(-1).view_as(z)


class Numbered(nn.Module):
    """Subspaces as numbered attributes."""

    def __init__(self, nin: int, num_splits: int) -> None:
        super().__init__()
        self.g = num_splits
        for i in range(num_splits):
            self.add_module(f"sub_{i + 1}", NestedSubSpace(nin // num_splits))

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.chunk(x, self.g, dim=1)
        return torch.cat([getattr(self, f"sub_{i + 1}")(chunk) for i, chunk in enumerate(chunks)], dim=1)


class SharedULSAM(nn.Module):
    """One subspace's weights for all subspaces."""

    def __init__(
        self, nin: int, num_splits: int, *, legacy: bool = False, bias: bool = True, momentum: float | None = 0.9
    ) -> None:
        super().__init__()
        group = nin // num_splits
        self.num_splits, self.legacy = num_splits, legacy
        self.dws_conv = nn.Conv2d(group, group, 1, groups=group, bias=bias)
        self.dws_bn = nn.BatchNorm2d(group, momentum=momentum)
        self.point_conv = nn.Conv2d(group, 1, 1, bias=bias)
        self.point_bn = nn.BatchNorm2d(1, momentum=momentum)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 1, 1)
        self.softmax = nn.Softmax(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        ys = []
        for chunk in torch.chunk(x, self.num_splits, dim=1):
            u = self.relu(self.dws_bn(self.dws_conv(chunk)))
            z = self.relu(self.point_bn(self.point_conv(self.maxpool(chunk if self.legacy else u))))
            ys.append(chunk + chunk * self.softmax(z.flatten(2)).view_as(z))
        return torch.cat(ys, dim=1)


class Net(nn.Module):
    """ULSAM under other names in a larger network, in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.attention = ULSAMBlock(12, 0, 0, 0, 2)
        self.old = ShortULSAM(12, 4, legacy=True)
        self.bank = nn.ModuleList([SubSpace(12), SubSpace(12)])
        self.shared = SharedULSAM(12, 2)
        self.again = self.old
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.old(self.attention(self.stem(x)))
        x = self.again(self.shared(self.bank[1](self.bank[0](x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def excited(module: nn.Module, eps: float | None = None) -> nn.Module:
    """The module in float64 with weights of both signs, peaked maps and running statistics that are not the first ones.

    The gradient of the depthwise weights is proportional to eps, because all else cancels: with an eps of 0.1 it is
    larger than rounding. None keeps the module's own.
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = eps or layer.eps
            if layer.weight is not None:
                nn.init.normal_(layer.weight, std=4 if layer.num_features == 1 else 1)
                nn.init.normal_(layer.bias)
            if layer.running_mean is not None and layer.running_var is not None:
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 2)
    return module.double()
