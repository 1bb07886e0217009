"""What `check` compares: every value and gradient of an operator with the reference in float64.

y is x to within A, about 1 / (H*W), so y alone cannot tell the operator from the identity. Compared are A, y - x, y,
dx - dy, the gradients of the parameters, and dx(A), the gradient of x from a gradient at A alone.

Errors are relative to ||golden||. Where exact arithmetic gives 0 (db and dshift without an activation, every
parameter's gradient of a 1x1 map), ||golden|| is rounding noise, and the norm of the summands' magnitudes takes its
place. The rounding in the tolerance is the epsilon of x's type, plus float32's (float64's for float64 x) times the
condition of the sum, ||summands' magnitudes|| / ||golden||: where a sum cancels, the order of its summands alone makes
that difference, and eager PyTorch may have been lucky.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .accuracy import Measure, Results, largest_error, measure, relative_error

Operator = Callable[..., Any]  # called as ulsam_fused.subspace_attention
QUANTITIES = ("A", "y-x", "y", "dx-dy", "dx(A)", "dscale", "dshift", "dv", "db")


@dataclass(frozen=True)
class Problem:
    """One call and the gradients that arrive at its outputs."""

    x: Tensor  # [N, C, H, W]
    scale: Tensor  # [C]
    shift: Tensor | None  # [C]
    v: Tensor  # [C]
    b: Tensor | None  # [num_splits]
    num_splits: int
    activation: str | None
    dy: Tensor  # [N, C, H, W]
    d_attention: Tensor  # [N, num_splits, H, W]

    def double(self) -> "Problem":
        tensors: dict[str, Any] = {name: t.double() for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **tensors)


def compare(operator: Operator, problem: Problem) -> list[Measure]:
    """The operator's errors on one problem, and whether a second call gives the same bits (quantity "repeat")."""
    golden, magnitudes, norms = _golden(problem)
    eager = results(reference.subspace_attention, problem)
    ours = results(operator, problem)
    epsilon = torch.finfo(problem.x.dtype).eps
    fine = torch.finfo(torch.promote_types(problem.x.dtype, torch.float32)).eps
    conditions = {name: magnitudes[name] / norm if norm > 0 else 0 for name, norm in norms.items()}
    rounding = {name: epsilon + fine * condition for name, condition in conditions.items()}
    again = results(operator, problem)
    same = all(torch.equal(_bits(ours[name]), _bits(again[name])) for name in ours)
    repeat = Measure("repeat", error=0.0 if same else 1.0, tolerance=0.0)
    return [*measure(ours, eager, golden, rounding, norms), repeat]


@dataclass(frozen=True)
class Errors:
    """Of one quantity. An ulp is an epsilon of the type that the quantity is stored in."""

    quantity: str
    fused: float  # ||q - golden|| / ||golden||
    eager: float
    fused_ulp: float  # the same in ulp
    eager_ulp: float
    fused_element_ulp: float  # the largest of an element, of its own size plus the root mean square of all
    eager_element_ulp: float

    @property
    def behind(self) -> float:
        """By how many ulp the fused result is farther from golden than eager PyTorch's; infinite for NaN."""
        difference = self.fused_ulp - self.eager_ulp
        return difference if difference == difference else math.inf


def errors(operator: Operator, problem: Problem) -> list[Errors]:
    """Of the operator, and of eager PyTorch in the same type."""
    golden, _, norms = _golden(problem)
    eager, ours = results(reference.subspace_attention, problem), results(operator, problem)
    found = []
    for name, right in golden.items():
        stored = problem.scale if name in ("dscale", "dshift", "dv", "db") else problem.x
        wide = torch.promote_types(stored.dtype, torch.float32) if name in ("A", "y-x") else stored.dtype
        epsilon = torch.finfo(wide).eps
        both = (ours.get(name), eager[name])
        relative = [relative_error(t, right, norms[name]) for t in both]
        elements = [largest_error(t, right) / epsilon for t in both]
        found.append(Errors(name, *relative, *(error / epsilon for error in relative), *elements))
    return found


def _golden(problem: Problem) -> tuple[Results, dict[str, float], dict[str, float]]:
    """Every quantity in float64, the norm of its summands' magnitudes, and the norm that its errors are relative to."""
    golden_problem = problem.double()
    golden = results(reference.subspace_attention, golden_problem)
    magnitudes = {name: t.norm().item() for name, t in _magnitudes(golden["A"], golden_problem).items()}
    return golden, magnitudes, {name: _norm(golden[name], magnitudes[name]) for name in golden}


def results(operator: Operator, problem: Problem) -> Results:
    """Every quantity of one problem; a gradient that is missing is left out."""
    x, scale, v = (t.detach().requires_grad_() for t in (problem.x, problem.scale, problem.v))
    shift, b = (None if t is None else t.detach().requires_grad_() for t in (problem.shift, problem.b))
    arguments = (x, scale, v, problem.num_splits, shift, b)
    wide = torch.promote_types(x.dtype, torch.float32)  # 16 bits would round y - x away
    y = operator(*arguments, activation=problem.activation)
    y_wide, attention = operator(*arguments, activation=problem.activation, return_attention=True, out_dtype=wide)
    parameters = {"dscale": scale, "dshift": shift, "dv": v, "db": b}
    named = {name: t for name, t in parameters.items() if t is not None}
    dx, *gradients = _gradients(y, (x, *named.values()), problem.dy)
    (dx_of_attention,) = _gradients(attention, (x,), problem.d_attention)
    found = {
        "A": attention.detach(),
        "y-x": y_wide.detach() - x.detach(),
        "y": y.detach(),
        "dx-dy": None if dx is None else dx.double() - problem.dy.double(),
        "dx(A)": dx_of_attention,
        **dict(zip(named, gradients, strict=True)),
    }
    return {name: t for name, t in found.items() if t is not None}


def _gradients(out: Tensor, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor | None, ...]:
    if not out.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(out, inputs, gradient.to(out.dtype), allow_unused=True)


def _bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8)


def _norm(golden: Tensor, magnitude: float) -> float:
    """||golden||, or the norm of the magnitudes where golden is 0 but for rounding."""
    norm = golden.norm().item()
    return norm if norm > 1e-9 * magnitude else magnitude


def _magnitudes(attention: Tensor, problem: Problem) -> Results:
    """Every quantity, in float64, with absolute values in place of the summands of all its sums."""
    x, dy, g = problem.x.abs(), problem.dy.abs(), problem.num_splits

    def per_channel(maps: Tensor) -> Tensor:  # [N, g, H, W] -> [N, C, H, W]
        return maps.repeat_interleave(x.shape[1] // g, dim=1)

    def dl(d: Tensor) -> Tensor:  # from |dA|: A * (|dA| + sum over q of A |dA|)
        return attention * (d + (attention * d).sum((2, 3), keepdim=True))

    def column(weights: Tensor) -> Tensor:
        return weights.abs().view(1, -1, 1, 1)

    largest = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
    m = column(problem.scale) * largest + (0 if problem.shift is None else column(problem.shift))
    dl_y = dl((dy * x).unflatten(1, (g, -1)).sum(2))
    du = column(problem.v) * per_channel(dl_y)
    return {
        "A": attention,
        "y-x": per_channel(attention) * x,
        "y": x,
        "dx-dy": dy * per_channel(attention) + column(problem.scale) * du,
        "dx(A)": column(problem.scale) * column(problem.v) * per_channel(dl(problem.d_attention.abs())),
        "dscale": (du * largest).sum((0, 2, 3)),
        "dshift": du.sum((0, 2, 3)),
        "dv": (per_channel(dl_y) * m).sum((0, 2, 3)),
        "db": dl_y.sum((0, 2, 3)),
    }
