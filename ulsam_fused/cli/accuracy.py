"""`ulsam-fused accuracy`: how far the fused operator and eager PyTorch are from float64, quantity by quantity."""

import argparse
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .._version import __version__
from ..bench import cases
from ..bench.cases import Case
from ..bench.operator_accuracy import Errors, Operator, errors
from ..console import devices, files, output
from ..console.errors import UserError
from ..console.tables import aligned
from .check import operator_of


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


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        files.check_output(args.json)
    show = output.nothing if files.is_stdout(args.json) else print
    device = devices.pick(args.device)
    names = devices.fused_backends(args.backend, device)
    if not names:
        raise UserError(f"no fused backend can serve tensors on {device}")
    show(devices.describe(device))
    written = []
    for name in names:
        rows = measure(operator_of(name), cases.chosen(args.extent, devices.interpreted(name, device)), device)
        if args.verbose:
            show(f"\nbackend {name}", *aligned([_HEAD, *(row.cells() for row in rows)], left=2), sep="\n")
        show(f"{name:<7} {verdict(rows)}")
        output.flush()
        written += [{"backend": name, **dataclasses.asdict(row.case), **dataclasses.asdict(row.errors)} for row in rows]
    if args.json is not None:
        head = {"device": devices.describe(device), "ulsam_fused": __version__, "torch": torch.__version__}
        files.write_json(args.json, {**head, "rows": written})
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
