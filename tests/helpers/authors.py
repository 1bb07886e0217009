"""The authors' module as ordinary layers beside ours, with the same weights: what both give in one training step."""

from typing import Any

import torch
from torch import Tensor, nn

from ulsam_fused import reference, upstream
from ulsam_fused.state_dict import KEYS

EXACT = 1e-10
"""Relative, in float64."""

CANCELLED = ("dw_bias", "pw_bias")  # a norm removes them: their gradient is 0 here and rounding noise there


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
    """A tensor of theirs, or its gradient, as ours holds it: flat, all subspaces one after the other."""
    subspaces = [part for part in theirs.modules() if isinstance(part, reference.SubSpace)]
    tensors = [dict([*part.named_parameters(), *part.named_buffers()])[KEYS[name]] for part in subspaces]
    parts = [t for t in (t.grad if gradient else t.detach() for t in tensors) if t is not None]
    if not parts:
        return None
    first, *_ = parts
    return first if first.dim() == 0 else torch.cat([part.flatten() for part in parts])


def step(module: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """y and dx; the parameters' gradients stay in .grad."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = module(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


def assert_same_step(theirs: nn.Module, ours: upstream.ULSAM, x: Tensor, dy: Tensor) -> None:
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
            absolute = rounding(ours, x, dy) if name in (*CANCELLED, "dw_weight") else 0.0
            assert_close(f"gradient of {name}", parameter.grad, gradient, absolute)
    assert_same_state(theirs, ours)


def rounding(ours: upstream.ULSAM, x: Tensor, dy: Tensor) -> float:
    """What autograd may lose where a norm makes the terms of a gradient cancel: epsilon times their magnitude."""
    assert ours.dw_norm is not None
    assert ours.pw_norm is not None
    terms = dy.abs().sum() * x.abs().max() ** 2 * ours.pw_weight.abs().max()
    for norm in (ours.dw_norm, ours.pw_norm):
        terms = terms * norm.weight.abs().max() / norm.eps**0.5
    return 8 * torch.finfo(torch.float64).eps * terms.item()


def assert_same_state(theirs: nn.Module, ours: upstream.ULSAM, least: float = 0.0, **absolute: float) -> None:
    """Every parameter and buffer agrees, to an absolute error where one is named (`dw_bias=...`) or to the least."""
    for name, t in [*ours.named_parameters(), *ours.named_buffers()]:
        assert_close(name, t.detach(), joined(theirs, name), absolute.get(name.replace(".", "_"), least))


def assert_close(what: str, ours: Tensor, theirs: Tensor | None, absolute: float = 0.0) -> None:
    __tracebackhide__ = True
    assert theirs is not None, what
    assert ours.shape == theirs.shape, what
    error, size = (ours.double() - theirs.double()).norm().item(), theirs.double().norm().item()
    assert error <= EXACT * size + max(absolute, 1e-14), f"{what}: off by {error:.1e}, its norm is {size:.1e}"
