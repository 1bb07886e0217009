"""`ulsam-fused check`: the fused operator against the reference in float64, values and gradients, on this machine."""

import argparse
import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..bench import cases
from ..bench.accuracy import Measure
from ..bench.cases import SHORT, Case
from ..bench.operator_accuracy import QUANTITIES, Operator, compare
from ..console import devices, output
from ..console.errors import UserError, one_line
from ..functional import subspace_attention


class Worst(NamedTuple):
    """The quantity of all cases whose error takes most of its tolerance."""

    measure: Measure
    case: Case

    def __str__(self) -> str:
        share = f"{self.measure.share:.0%} of the tolerance"
        return f"at most {share} ({self.measure.quantity}, {SHORT[self.case.dtype]})"

    def details(self) -> str:
        quantity, error, tolerance = self.measure.quantity, self.measure.error, self.measure.tolerance
        return f"worst: {quantity} {error:.1e} of {tolerance:.1e} allowed ({' '.join(str(self.case).split())})"


class Outcome(NamedTuple):
    """How many quantities of a backend passed and failed, and the worst."""

    passed: int
    failed: int
    worst: Worst | None

    def line(self, seconds: float) -> str:
        if not self.failed:
            return f"passed: {self.passed} checks in {seconds:.1f} s, {self.worst}"
        return f"FAILED: {self.failed} of {self.passed + self.failed} checks in {seconds:.1f} s"


def run(args: argparse.Namespace) -> int:
    device = devices.pick(args.device)
    names = devices.fused_backends(args.backend, device)
    if not names:
        raise UserError(f"no fused backend can serve tensors on {device}")
    print(devices.describe(device))
    passed = failed = 0
    for name in names:
        rows = cases.chosen(args.extent, devices.interpreted(name, device))
        start = time.perf_counter()
        if args.verbose:
            print(f"\nbackend {name}\n{_HEAD}")
        found = check(name, rows, device, args.verbose)
        if args.verbose and found.worst is not None:
            print(found.worst.details())
        print(f"{name:<7} {found.line(time.perf_counter() - start)}", flush=True)
        passed, failed = passed + found.passed, failed + found.failed
    print(f"{passed} checks passed, {failed} failed")
    return 1 if failed else 0


def operator_of(backend: str) -> Operator:
    return functools.partial(subspace_attention, backend=backend)


_HEAD = f"{'NxCxHxW/g':<17} {'type':<9} {'format':<6} {'maps':<6} {'act':<4} {'result':<6}" + "".join(
    f"{quantity:>9}" for quantity in QUANTITIES
)


def check(backend: str, rows: Sequence[Case], device: torch.device, verbose: bool) -> Outcome:
    """Check every case; print those that fail, or all where verbose, as they are done."""
    operator = operator_of(backend)
    passed = failed = 0
    worst: Worst | None = None
    for number, case in enumerate(rows, start=1):
        output.progress(f"{backend}: case {number} of {len(rows)}")
        try:
            found = compare(operator, case.problem(device))
        except (RuntimeError, ValueError, TypeError) as error:
            failed += 1
            output.progress("")
            print(f"{case} FAILED: {one_line(error)}", flush=True)
            continue
        wrong = [measure for measure in found if not measure.passed]
        passed, failed = passed + len(found) - len(wrong), failed + len(wrong)
        here = Worst(max(found, key=lambda measure: measure.share), case)
        if worst is None or here.measure.share > worst.measure.share:
            worst = here
        if verbose or wrong:
            output.progress("")
            cells = {measure.quantity: f"{measure.error:.1e}{'' if measure.passed else '!'}" for measure in found}
            errors = "".join(f"{cells.get(quantity, '-'):>9}" for quantity in QUANTITIES)
            print(f"{case} {'FAILED' if wrong else 'ok':<6}{errors if verbose else ''}", flush=True)
        for measure in wrong:
            print(f"    {'a second run gave other bits' if measure.quantity == 'repeat' else measure}", flush=True)
    output.progress("")
    return Outcome(passed, failed, worst)
