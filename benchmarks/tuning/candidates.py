"""Finds launch configurations that are faster than those that launching/config.py chooses.

    python -m benchmarks.tuning.candidates --output out/candidates
    python -m benchmarks.tuning.candidates --output out/candidates --case 256x512x14x14/g4 --direction backward
    TRITON_INTERPRET=1 python -m benchmarks.tuning.candidates --output out --device cpu --case 2x8x16x5/g2 # a trial

First all candidates are compiled, side by side, and compared with the chosen configuration: y, A, dx and the gradients
of parameters must agree (agreement.py says how closely). A candidate that is wrong or fails is not timed. Then the
candidates of each target are timed in turn, with cold caches, the most important targets first. Rows are written as
they come to candidates-<gpu>-torch<version>-triton<version>.json, so a run that is cut off keeps them.
At the end it prints where an alternative is faster; a gain of less than 3 % is noise.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import sys
import time

import torch
from ulsam_fused.kernels.gpu.backend import INTERPRETED

from benchmarks import sizes
from benchmarks.published import schema
from benchmarks.tuning import table
from benchmarks.tuning.calls import Work, candidates
from benchmarks.tuning.configs import CHOSEN, DIRECTIONS, Candidate, Target
from benchmarks.tuning.processes import Verdicts, judged
from benchmarks.tuning.table import Row
from benchmarks.tuning.timing import in_turn
from ulsam_fused.bench import rows as bench_rows
from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.timing import Call
from ulsam_fused.bench.workload import check_case
from ulsam_fused.console import devices, files
from ulsam_fused.console.errors import UserError

COMPILING = 0.6  # share of the time, at most
EACH = 0.1  # seconds that a candidate is timed


def targets(args: argparse.Namespace) -> list[Target]:
    """The most important first: the paper's form at every size, then the form with BatchNorm."""
    forms = (DIRECTIONS[:2], DIRECTIONS[2:])
    return [
        Target(case, direction, dtype, layout)
        for dtype, form, case in itertools.product(args.dtype or ["float16"], forms, args.case or sizes.CASES)
        for direction, layout in itertools.product(form, args.layout or LAYOUTS)
        if direction in (args.direction or DIRECTIONS)
    ]


def measured(target: Target, device: torch.device, tried: dict[str, Candidate], verdicts: Verdicts) -> list[Row]:
    """The rows of the candidates that have a verdict."""
    work = Work.make(target, device)

    def call(candidate: Candidate) -> Call:
        return lambda i: work.run(candidate, i)

    calls = {name: call(tried[name]) for name, error in verdicts.items() if error is None}
    times, errors = in_turn(calls, len(work.xs), EACH, device)
    errors = {name: error for name, error in verdicts.items() if error is not None} | errors
    chosen = times.get(CHOSEN)
    rows: list[Row] = []
    for name, candidate in tried.items():
        if name in times or name in errors:
            t = times.get(name)
            rows.append(
                {
                    "case": target.case,
                    "direction": target.direction,
                    "dtype": target.dtype,
                    "layout": target.layout,
                    "name": name,
                    "config": dataclasses.asdict(candidate),
                    "error": errors.get(name),
                    "us_p20": None if t is None else round(t.p20, 3),
                    "us_p50": None if t is None else round(t.p50, 3),
                    "us_p80": None if t is None else round(t.p80, 3),
                    "ratio": None if t is None or chosen is None else round(t.p50 / chosen.p50, 4),
                    "method": None if t is None else t.method,
                }
            )
    return rows


def run(args: argparse.Namespace, device: torch.device) -> tuple[pathlib.Path, list[Row], int]:
    """The file, its rows, and the number of targets that there was no time for."""
    start = time.monotonic()
    end = start + args.seconds
    result = bench_rows.heading(device)
    result["commit"] = args.commit or result["commit"]
    path = args.output / f"candidates-{schema.file_name(result)}"
    rows: list[Row] = []
    wanted = targets(args)
    tried = [candidates(target, device) for target in wanted]
    names = [list(these) for these in tried]
    found = judged(wanted, device, names, args.output, start + COMPILING * args.seconds)
    told, of = sum(map(len, found)), sum(map(len, names))
    print(f"{told} of {of} candidates of {len(wanted)} targets judged in {time.monotonic() - start:.0f} s", flush=True)
    left = 0
    for target, these, verdicts in zip(wanted, tried, found, strict=True):
        if time.monotonic() > end or not verdicts:
            left += 1
            continue
        rows += measured(target, device, these, verdicts)
        files.write_json(path, {**result, "candidates": rows})
        print(f"{target}: {sum(row['error'] is None for row in rows)} times taken so far", file=sys.stderr, flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # graphs keep what they have allocated
    return path, rows, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for rows and logs; not results/")
    parser.add_argument("--case", action="append", metavar="NxCxHxW/gK", help="this size alone; repeatable")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="this one alone; repeatable")
    parser.add_argument("--dtype", action="append", choices=devices.DTYPES, help="default: float16; repeatable")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="this one alone; repeatable")
    parser.add_argument("--seconds", type=float, default=500, help="for all together (default: 500)")
    parser.add_argument("--commit", metavar="HASH", help="what this tree is a copy of, where git cannot say it")
    parser.add_argument("--device", default="cuda", help="cpu, under TRITON_INTERPRET=1, tries the script itself")
    args = parser.parse_args()
    if args.output.resolve() == schema.RESULTS:
        parser.error("results/ is for published figures; choose another --output")
    if args.device == "cpu" and not INTERPRETED:
        parser.error("--device cpu needs TRITON_INTERPRET=1")
    try:
        device = devices.pick(args.device)
        for case in args.case or ():
            check_case(case)
    except UserError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        path, rows, left = run(args, device)
    if device.type == "cpu":
        print("interpreted: these times say nothing")
    print(table.text(rows))
    if left:
        print(f"no time was left for {left} targets")
    print(f"{len(rows)} rows: {path}" if rows else "nothing was measured")
    return int(not rows)


if __name__ == "__main__":
    sys.exit(main())
