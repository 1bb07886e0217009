"""`ulsam-fused accuracy`: how far the fused operator and eager PyTorch are from float64, quantity by quantity."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .._version import __version__
from ..bench import cases
from ..bench.cases import Case
from ..bench.operator_accuracy import Errors, Operator, errors
from ..console import devices
from ..console.errors import UserError, check_output
from ..console.tables import aligned
from .check import operator_of

_DESCRIPTION = """\
Computes sizes, types, memory formats, nearly uniform and peaked maps in float64, by every fused backend that can serve
here and by eager PyTorch, and prints how far both are from float64. Quantities are A, y - x, y, the gradients of all
parameters, dx-dy (what the layer adds to the gradient that passes through) and dx(A) (the gradient of x through A).
An error is relative, ||q - float64|| / ||float64||, in ulp: epsilons of the result's type. The line of a backend says
where it is farthest behind eager PyTorch in the same type.
"""


class Row(NamedTuple):
    """One quantity of one case."""

    case: Case
    errors: Errors

    def cells(self) -> list[str]:
        found = self.errors
        numbers = (found.fused_ulp, found.eager_ulp, found.fused_element_ulp, found.eager_element_ulp)
        return [" ".join(str(self.case).split()), found.quantity, f"{found.fused:.1e}", f"{found.eager:.1e}",
                *(f"{number:.2f}" for number in numbers)]  # fmt: skip


_HEAD = ["case", "quantity", "fused", "eager", "fused ulp", "eager ulp", "fused worst element", "eager worst element"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.epilog = (
        "examples:\n  ulsam-fused accuracy --quick\n"
        "  ulsam-fused accuracy --backend cpp --verbose --json accuracy.json\n"
        "  TRITON_INTERPRET=1 ulsam-fused accuracy --backend triton     the Triton kernels on a CPU, small sizes"
    )
    parser.add_argument("--backend", action="append", choices=devices.FUSED, help="only this one; repeatable")
    devices.add_device_argument(parser)
    parser.add_argument("--quick", action="store_true", help="formats, maps and activations by turns")
    parser.add_argument("--verbose", action="store_true", help="print every case and quantity")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write all rows to this file")


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        check_output(args.json)
    device = devices.pick(args.device)
    names = devices.fused_backends(args.backend, device)
    if not names:
        raise UserError(f"no fused backend can serve tensors on {device}")
    print(devices.describe(device))
    written = []
    for name in names:
        chosen = (
            cases.interpreted(args.quick) if devices.interpreted(name, device)
            else cases.quick() if args.quick else cases.full()
        )  # fmt: skip
        rows = measure(operator_of(name), chosen, device)
        if args.verbose:
            print(f"\nbackend {name}", *aligned([_HEAD, *(row.cells() for row in rows)], left=2), sep="\n")
        print(f"{name:<7} {verdict(rows)}", flush=True)
        written += [{"backend": name, **dataclasses.asdict(row.case), **dataclasses.asdict(row.errors)} for row in rows]
    if args.json is not None:
        head = {"device": devices.describe(device), "ulsam_fused": __version__, "torch": torch.__version__}
        args.json.write_text(json.dumps({**head, "rows": written}, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(operator: Operator, chosen: Iterable[Case], device: torch.device) -> list[Row]:
    return [Row(case, found) for case in chosen for found in errors(operator, case.problem(device))]


def verdict(rows: list[Row]) -> str:
    """Where the fused operator is farthest behind eager PyTorch. An error that is NaN or missing is infinitely far."""
    worst = max(rows, key=lambda row: row.errors.behind)
    found = worst.errors
    place = f"{found.quantity} of {' '.join(str(worst.case).split())}"
    if found.behind <= 0:
        return f"never worse than eager ({len(rows)} comparisons; nearest: {place})"
    return (
        f"never worse than eager by more than {found.behind:.2f} ulp ({place}: {found.fused_ulp:.2f} ulp, eager "
        f"{found.eager_ulp:.2f}; {sum(row.errors.behind <= 0 for row in rows)} of {len(rows)} are no worse)"
    )
