"""`ulsam-fused check`: the fused operator against the reference in float64, values and gradients, on this machine."""

import argparse
import functools
from collections.abc import Iterable

import torch

from ..bench import cases
from ..bench.cases import Case
from ..bench.operator_accuracy import QUANTITIES, Measure, Operator, compare
from ..console import devices
from ..console.errors import UserError
from ..functional import subspace_attention

_DESCRIPTION = """\
Compares every fused backend that can serve here with the reference in float64: the attention A, y - x, y, the
gradients, and whether a second run gives the same bits. Numbers are relative errors: dx-dy is what the layer adds to
the gradient that passes through, dx(A) the gradient of x through A alone. Each may be twice what eager PyTorch loses in
the same type on the same inputs, plus rounding of the type and of float32 sums; what is above is marked with "!".
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.epilog = (
        "examples:\n  ulsam-fused check --quick\n  ulsam-fused check --backend torch --device cpu\n"
        "  TRITON_INTERPRET=1 ulsam-fused check --quick     the Triton kernels on a CPU, small sizes\n\n"
        "Exit code 1 when anything differs."
    )
    parser.add_argument("--backend", action="append", choices=devices.FUSED, help="only this one; repeatable")
    devices.add_device_argument(parser)
    parser.add_argument("--quick", action="store_true", help="formats, maps and activations by turns")


def run(args: argparse.Namespace) -> int:
    device = devices.pick(args.device)
    names = devices.fused_backends(args.backend, device)
    if not names:
        raise UserError(f"no fused backend can serve tensors on {device}")
    print(devices.describe(device))
    passed = failed = 0
    for name in names:
        if devices.interpreted(name, device):
            rows = cases.interpreted(args.quick)
        else:
            rows = cases.quick() if args.quick else cases.full()
        counts = check(name, operator_of(name), rows, device)
        passed, failed = passed + counts[0], failed + counts[1]
    print(f"\n{passed} checks passed, {failed} failed")
    return 1 if failed else 0


def operator_of(backend: str) -> Operator:
    return functools.partial(subspace_attention, backend=backend)


def check(name: str, operator: Operator, rows: Iterable[Case], device: torch.device) -> tuple[int, int]:
    """Print a row for each case as it is done; returns how many checks passed and how many failed."""
    passed = failed = 0
    head = "".join(f"{quantity:>9}" for quantity in QUANTITIES)
    print(f"\nbackend {name}\n{'NxCxHxW/g':<17} {'type':<9} {'format':<6} {'maps':<6} {'act':<4} {'result':<6}{head}")
    for case in rows:
        try:
            measures = compare(operator, case.problem(device))
        except (RuntimeError, ValueError, TypeError) as error:
            failed += 1
            print(f"{case} FAILED: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            continue
        wrong = [measure for measure in measures if not measure.passed]
        passed, failed = passed + len(measures) - len(wrong), failed + len(wrong)
        cells = {measure.quantity: _cell(measure) for measure in measures}
        row = "".join(f"{cells.get(quantity, '-'):>9}" for quantity in QUANTITIES)
        print(f"{case} {'FAILED' if wrong else 'ok':<6}{row}", flush=True)
        for measure in wrong:
            print(f"    {_complaint(measure)}", flush=True)
    return passed, failed


def _complaint(measure: Measure) -> str:
    if measure.quantity == "repeat":
        return "a second run gave other bits"
    return f"{measure.quantity}: error {measure.error:.1e}, tolerance {measure.tolerance:.1e}"


def _cell(measure: Measure) -> str:
    return f"{measure.error:.1e}{'' if measure.passed else '!'}"
