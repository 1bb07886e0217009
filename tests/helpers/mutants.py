"""Operators with one mistake each, called as `ulsam_fused.subspace_attention`: every gate must refuse them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ulsam_fused.reference import subspace_attention

Operator = Callable[..., Any]


def attention_of(x: Tensor, num_splits: int) -> Tensor:
    return torch.full((x.shape[0], num_splits, *x.shape[2:]), 1 / x[0, 0].numel())


def identity(x: Tensor, scale: Tensor, v: Tensor, g: int, *rest: Any, **options: Any) -> Any:
    """Returns x and a uniform map, joined to the graph so that all gradients exist."""
    zero = sum(t.sum() for t in (scale, v, *rest) if t is not None) * 0
    y = (x + zero).to(options.get("out_dtype") or x.dtype)
    return (y, attention_of(x, g) + zero + 0 * x.sum()) if options.get("return_attention") else y


def last_tie_wins(x: Tensor, *arguments: Any, **options: Any) -> Any:
    """The reference on the flipped map: of equal maxima the last takes the gradient."""
    out = subspace_attention(x.flip(2, 3), *arguments, **options)
    return tuple(t.flip(2, 3) for t in out) if isinstance(out, tuple) else out.flip(2, 3)


def without_gradient(position: int) -> Operator:
    """The reference, one argument being treated as a constant."""

    def operator(*arguments: Any, **options: Any) -> Any:
        changed = [t.detach() if i == position and t is not None else t for i, t in enumerate(arguments)]
        return subspace_attention(*changed, **options)

    return operator


def without_gradient_through_the_maximum(x: Tensor, *arguments: Any, **options: Any) -> Any:
    """dx = dy * (1 + A), the rest forgotten."""
    _, attention = subspace_attention(x.detach(), *arguments, **{**options, "return_attention": True})
    size = x.shape[1] // attention.shape[1]
    y = ((1 + attention.repeat_interleave(size, dim=1)) * x).to(options.get("out_dtype") or x.dtype)
    return (y, attention + 0 * x.sum()) if options.get("return_attention") else y


def swapped_subspaces(x: Tensor, scale: Tensor, v: Tensor, g: int, *rest: Any, **options: Any) -> Any:
    return subspace_attention(x, scale, v.unflatten(0, (g, -1)).flip(0).flatten(), g, *rest, **options)


def slightly_wrong(x: Tensor, scale: Tensor, v: Tensor, *rest: Any, **options: Any) -> Any:
    return subspace_attention(x, scale, v * 1.001, *rest, **options)


def restless() -> Operator:
    """Never the same bits twice, and never off by more than rounding."""
    calls = iter(range(10**6))

    def moved(t: Tensor) -> Tensor:
        """To the next number; nextafter itself has no derivative in PyTorch 2.10."""
        value = t.detach()
        return t + (value.nextafter(value + 1) - value)

    def operator(*arguments: Any, **options: Any) -> Any:
        out = subspace_attention(*arguments, **options)
        if next(calls) % 4 < 2:
            return out
        return tuple(map(moved, out)) if isinstance(out, tuple) else moved(out)

    return operator


def refusing(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("does not compile")
