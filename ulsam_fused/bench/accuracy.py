"""The one judge of correctness: what `check`, `bench`, `bench --model` and the tuning of launches call right.

A result is compared with a golden one, which is computed in float64. Its error is ||ours - golden|| / ||golden||. The
tolerance is twice the error of eager PyTorch, in the same type and on the same inputs, plus a rounding that the
caller states: the epsilon of the type, and what a sum may gain or lose in another order.

tests/helpers/golden.py judges by formulas of its own, on purpose: a mistake here must not hide a mistake of a kernel
from the tests.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

Results = dict[str, Tensor]  # by the name of the quantity


@dataclass(frozen=True)
class Measure:
    """The error of one quantity. NaN fails, and so does an infinite tolerance: eager PyTorch was of no use."""

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance < math.inf

    @property
    def share(self) -> float:
        """The error as a share of its tolerance; NaN counts as infinite."""
        if not self.error > 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.tolerance if self.tolerance > 0 else math.inf

    def __str__(self) -> str:
        return f"{self.quantity} is off by {self.error:.1e}, allowed {self.tolerance:.1e}"


def measure(
    ours: Results,
    eager: Results,
    golden: Results,
    rounding: Mapping[str, float],
    norms: Mapping[str, float] | None = None,
) -> list[Measure]:
    """One measure for each golden quantity; what ours lacks fails. Errors are relative to `norms`, or ||golden||."""
    found = []
    for name, right in golden.items():
        norm = right.norm().item() if norms is None else norms[name]
        lost = relative_error(eager[name], right, norm)
        found.append(Measure(name, relative_error(ours.get(name), right, norm), 2 * lost + rounding[name]))
    return found


def relative_error(ours: Tensor | None, golden: Tensor, norm: float) -> float:
    """||ours - golden|| / norm; infinite where ours is missing or has another shape."""
    if ours is None or ours.shape != golden.shape:
        return math.inf
    difference = (ours.double() - golden).norm().item()
    return difference / norm if norm > 0 else (0.0 if difference == 0 else math.inf)


def largest_error(ours: Tensor | None, golden: Tensor) -> float:
    """The largest error of an element, relative to its own size plus the root mean square of all elements."""
    if ours is None or ours.shape != golden.shape:
        return math.inf
    golden = golden.double()
    scale = golden.abs() + golden.square().mean().sqrt()
    difference = (ours.double() - golden).abs()
    return (difference / scale).where(difference != 0, 0.0).max().item()


def complaint(measures: Iterable[Measure]) -> str | None:
    """What is wrong, of the first quantity that fails; None where all pass."""
    return next((f"wrong: {measure}" for measure in measures if not measure.passed), None)
