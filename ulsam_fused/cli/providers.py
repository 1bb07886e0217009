"""What `bench` times: the authors' module, plain PyTorch, and the fused operator. All are modules, x -> y.

Two functions are computed. "paper" is 2 * C weights and nothing else. "upstream" is the authors' published code:
biases, two BatchNorms and two ReLUs; with running statistics in the forward pass, with batch statistics in the step.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import reference
from ..functional import subspace_attention
from ..modules import ULSAM

SHARPNESS = 16.0
"""Weights this much larger than initial ones peak A, so that it can be seen in 16 bits. No time depends on it."""


class Paper(nn.Module):
    """The paper's formula in eager PyTorch, one subspace after the other."""

    def __init__(self, channels: int, num_splits: int) -> None:
        super().__init__()
        self.num_splits = num_splits
        bound = SHARPNESS * (num_splits / channels) ** 0.5
        self.dw_weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))
        self.pw_weight = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        y = reference.subspace_attention(x, self.dw_weight, self.pw_weight, self.num_splits)
        assert isinstance(y, Tensor)
        return y


class Vectorised(Paper):
    """The paper's formula with no loop: one max-pool, one matrix product, one softmax, one multiply-add."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        g = self.num_splits
        m = F.max_pool2d(self.dw_weight.view(1, c, 1, 1) * x, kernel_size=3, stride=1, padding=1)
        z = self.pw_weight.view(1, g, 1, c // g) @ m.view(n, g, c // g, h * w)  # [n, g, 1, h * w]
        a = z.softmax(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        x_k = x.unflatten(1, (g, c // g))
        return torch.addcmul(x_k, x_k, a.view(n, g, 1, h, w)).flatten(1, 2)


class UpstreamSubspace(nn.Module):
    """One subspace of the authors' code, step by step (github.com/Nandan91/ULSAM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dws = nn.Conv2d(channels, channels, kernel_size=1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=0.9)
        self.relu_dws = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.conv_point = nn.Conv2d(channels, 1, kernel_size=1)
        self.bn_point = nn.BatchNorm2d(1, momentum=0.9)
        self.relu_point = nn.ReLU()
        self.softmax = nn.Softmax(dim=2)
        nn.init.constant_(self.bn_point.weight, SHARPNESS / 4)  # what it scales has variance 1 already

    def forward(self, x: Tensor) -> Tensor:
        out = self.maxpool(self.relu_dws(self.bn_dws(self.conv_dws(x))))
        out = self.relu_point(self.bn_point(self.conv_point(out)))
        n, one, h, w = out.shape
        out = self.softmax(out.view(n, one, -1)).view(n, one, h, w)
        out = torch.mul(out.expand(n, x.shape[1], h, w), x)
        return out + x


class Upstream(nn.Module):
    """The authors' module: chunk, one subspace after the other, concatenate."""

    def __init__(self, channels: int, num_splits: int) -> None:
        super().__init__()
        self.num_splits = num_splits
        self.subspaces = nn.ModuleList(UpstreamSubspace(channels // num_splits) for _ in range(num_splits))

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.chunk(x, self.num_splits, dim=1)
        return torch.cat([subspace(chunk) for subspace, chunk in zip(self.subspaces, chunks, strict=True)], dim=1)


class Folded(nn.Module):
    """The authors' module in eval mode as one fused call: both BatchNorms folded into the operator's parameters."""

    scale: Tensor
    shift: Tensor
    v: Tensor
    b: Tensor

    def __init__(self, upstream: Upstream, backend: str) -> None:
        super().__init__()
        self.num_splits, self.backend = upstream.num_splits, backend
        folded = [_fold(subspace) for subspace in upstream.subspaces]
        for name, parts in zip(("scale", "shift", "v", "b"), zip(*folded, strict=True), strict=True):
            self.register_buffer(name, torch.cat(parts))

    def forward(self, x: Tensor) -> Tensor:
        return subspace_attention(
            x, self.scale, self.v, self.num_splits, self.shift, self.b, activation="relu", backend=self.backend
        )


def _fold(subspace: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scale, shift, v and b of one subspace: r = 1 / sqrt(running_var + eps), gamma * r scales, beta shifts."""
    first, second = subspace.bn_dws, subspace.bn_point
    with torch.no_grad():
        gain = first.weight * (first.running_var + first.eps).rsqrt()
        scale = gain * subspace.conv_dws.weight.flatten()
        shift = gain * (subspace.conv_dws.bias - first.running_mean) + first.bias
        gain = second.weight * (second.running_var + second.eps).rsqrt()
        v = gain * subspace.conv_point.weight.flatten()
        b = gain * (subspace.conv_point.bias - second.running_mean) + second.bias
    return scale, shift, v, b


@dataclass(frozen=True)
class Sources:
    """The modules that define the two functions, and that hold the weights that every provider gets."""

    paper: Paper
    upstream: Upstream

    @classmethod
    def make(cls, x: Tensor, num_splits: int, training: bool) -> "Sources":
        """Weights in x's type on its device; the running statistics are those of one pass over x."""
        torch.manual_seed(0)
        paper, upstream = Paper(x.shape[1], num_splits), Upstream(x.shape[1], num_splits)
        paper.to(x.device, x.dtype)
        upstream.to(x.device, torch.float32)
        with torch.no_grad():
            upstream(x.float())
        return cls(paper, upstream.to(x.dtype).train(training))


@dataclass(frozen=True)
class Provider:
    """One way to compute the layer; `build` makes it from the sources, and `form` says which of them it must equal."""

    name: str
    form: str  # "paper" or "upstream"
    note: str
    build: Callable[[Sources], nn.Module]
    forward_only: bool = False
    compiled: bool = False


def providers(backends: list[str], compiled: bool) -> list[Provider]:
    """Everything to be timed, the authors' module first."""
    plain = [
        Provider("eager", "upstream", "the authors' module in eager PyTorch", lambda s: s.upstream),
        Provider(
            "paper-eager", "paper", "the paper's formula in eager PyTorch, subspace by subspace", lambda s: s.paper
        ),
        Provider("vectorised", "paper", "the paper's formula in plain PyTorch without a loop", _vectorised),
    ]
    found = list(plain)
    if compiled:
        found += [_compiled(plain[0]), _compiled(plain[2])]
    for backend in backends:
        found += [_fused(backend), _folded(backend)]
    return found


def _vectorised(sources: Sources) -> nn.Module:
    module = Vectorised(sources.paper.dw_weight.shape[0], sources.paper.num_splits)
    return _like(sources.paper, module)


def _like(paper: Paper, module: nn.Module) -> nn.Module:
    module.to(paper.dw_weight.device, paper.dw_weight.dtype).load_state_dict(paper.state_dict())
    return module


def _compiled(provider: Provider) -> Provider:
    def build(sources: Sources) -> nn.Module:
        module = copy.deepcopy(provider.build(sources))  # compiling changes the module, which may be a source
        module.compile(dynamic=False)
        return module

    note = f"{provider.name} under torch.compile"
    return Provider(f"{provider.name}+compile", provider.form, note, build, compiled=True)


def _fused(backend: str) -> Provider:
    def build(sources: Sources) -> nn.Module:
        paper = sources.paper
        return _like(paper, ULSAM(paper.dw_weight.shape[0], paper.num_splits, backend=backend))

    return Provider(f"fused[{backend}]", "paper", f'ulsam_fused.ULSAM, backend "{backend}"', build)


def _folded(backend: str) -> Provider:
    return Provider(
        f"fused[{backend}]+norm",
        "upstream",
        f'the authors\' module in eval mode, its BatchNorms folded into one fused call, backend "{backend}"',
        lambda sources: Folded(sources.upstream, backend),
        forward_only=True,
    )
