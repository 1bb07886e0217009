"""The authors' module as ordinary layers beside ours, with the same weights: what both give in one training step."""

from typing import Any

import torch
from torch import Tensor, nn

import ulsam_fused as uf
from ulsam_fused import reference, upstream
from ulsam_fused.state_dict import KEYS

EXACT = 1e-10
"""Relative, in float64."""

CANCELLED = ("dw_bias", "pw_bias")  # a norm removes them: their gradient is 0 here and rounding noise there


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and timm's."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone() + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        w, b, mean, var = (t.view(1, -1, 1, 1) for t in self._buffers.values() if t is not None)
        return (x - mean) * w / (var + self.eps).sqrt() + b


def pair(channels: int, num_splits: int, **options: Any) -> tuple[reference.ULSAM, upstream.ULSAM]:
    """Theirs and ours in training mode, float64, with peaked maps, weights of both signs and a gamma of 0.

    The gradient of the depthwise weights is proportional to eps, because all else cancels: with an eps of 0.1 it is
    larger than rounding.
    """
    backend, device = options.pop("backend", "torch"), options.pop("device", "cpu")
    options = {"eps": 0.1, **options}
    theirs = reference.ULSAM(channels, num_splits, **options)
    subspaces = [part for part in theirs.modules() if isinstance(part, reference.SubSpace)]
    for subspace in subspaces:
        for norm, gain in ((subspace.bn_dws, 1.0), (subspace.bn_point, 4.0)):
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.normal_(norm.weight, std=gain)
            nn.init.normal_(norm.bias)
    if channels > 1:
        nn.init.zeros_(subspaces[0].get_parameter("bn_dws.weight")[:1])
    theirs.to(device, torch.float64)
    options = {**options, "backend": backend, "device": device, "dtype": torch.float64}
    ours = upstream.ULSAM(channels, num_splits=num_splits, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def joined(theirs: nn.Module, name: str, gradient: bool = False) -> Tensor | None:
    """A tensor of theirs, or its gradient, by its name in ours: theirs, or that of the flat layer's vectors."""
    own = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    names = [name] if name in own else [own_name for own_name in own if kind(own_name) == name]
    found = [t for t in (own[n].grad if gradient else own[n].detach() for n in names) if t is not None]
    if not found:
        return None
    first, *_ = found
    return first if name in own or first.dim() == 0 else torch.cat([t.flatten() for t in found])


def kind(name: str) -> str:
    """The flat layer's name of a tensor."""
    return next((flat for flat, key in KEYS.items() if ("." + name).endswith("." + key)), name)


def part(ours: nn.Module, key: str) -> Tensor:
    """All subspaces' tensors of one kind, such as "bn_dws.running_mean", behind each other."""
    own = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    return torch.cat([t.detach().flatten() for name, t in own.items() if ("." + name).endswith("." + key)])


def norms(ours: nn.Module, name: str) -> list[nn.BatchNorm2d]:
    """The norms "bn_dws" or "bn_point" of all subspaces."""
    return [m for key, m in ours.named_modules() if key.endswith(name) and isinstance(m, nn.BatchNorm2d)]


def step(module: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """y and dx; the parameters' gradients stay in .grad."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = module(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


def assert_same_step(theirs: nn.Module, ours: uf.ULSAM, x: Tensor, dy: Tensor) -> None:
    """y - x, dx - dy, all gradients and all buffers agree after one step of each."""
    y, dx = step(theirs, x, dy)
    our_y, our_dx = step(ours, x, dy)
    assert ours.backend == "reference" or our_y.stride() == torch.empty_like(x).stride()
    assert_close("y - x", our_y - x, y - x)
    assert_close("dx - dy", our_dx - dy, dx - dy)
    for name, parameter in ours.named_parameters():
        gradient = joined(theirs, name, gradient=True)
        if gradient is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            absolute = rounding(ours, x, dy) if kind(name) in (*CANCELLED, "dw_weight") else 0.0
            whole = joined(theirs, kind(name), gradient=True)  # one subspace's gradient may be nothing but rounding
            absolute = max(absolute, 0.0 if whole is None else EXACT * whole.norm().item())
            assert_close(f"gradient of {name}", parameter.grad, gradient, absolute)
    assert_same_state(theirs, ours)


def rounding(ours: uf.ULSAM, x: Tensor, dy: Tensor) -> float:
    """What autograd may lose where a norm makes the terms of a gradient cancel: epsilon times their magnitude."""
    own = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    least = min(getattr(module, "eps", 1.0) for module in ours.modules())
    terms = dy.abs().sum() * x.abs().max() ** 2 / least
    for name in ("pw_weight", "dw_norm.weight", "pw_norm.weight"):
        terms = terms * max([t.abs().max().item() for key, t in own.items() if kind(key) == name], default=1.0)
    return 8 * torch.finfo(torch.float64).eps * terms.item()


def assert_same_state(theirs: nn.Module, ours: uf.ULSAM, least: float = 0.0, **absolute: float) -> None:
    """Every parameter and buffer agrees, to an absolute error where one is named (`dw_bias=...`) or to the least."""
    for name, t in [*ours.named_parameters(), *ours.named_buffers()]:
        assert_close(name, t.detach(), joined(theirs, name), absolute.get(kind(name).replace(".", "_"), least))


def assert_close(what: str, ours: Tensor, theirs: Tensor | None, absolute: float = 0.0) -> None:
    __tracebackhide__ = True
    assert theirs is not None, what
    assert ours.shape == theirs.shape, what
    error, size = (ours.double() - theirs.double()).norm().item(), theirs.double().norm().item()
    assert error <= EXACT * size + max(absolute, 1e-14), f"{what}: off by {error:.1e}, its norm is {size:.1e}"
