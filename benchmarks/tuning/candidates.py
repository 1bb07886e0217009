"""Which launch configurations are faster than the chosen ones: the constants of launching/config.py, put to the test.

    python -m benchmarks.tuning.candidates --output out/candidates
    python -m benchmarks.tuning.candidates --output out/candidates --case 256x512x14x14/g4 --direction backward
    TRITON_INTERPRET=1 python -m benchmarks.tuning.candidates --output out --device cpu --case 2x8x16x5/g2 # a trial

First all candidates are compiled, side by side, and compared with the chosen configuration: y, A, dx and gradients of
parameters must agree (`candidate_verdicts.py` says how closely), and what is wrong or fails gets no time. Then those of
each group are timed in turn, from cold caches. What matters most comes first, and rows are written as they come to
candidates-<gpu>-torch<version>-triton<version>.json, so that of a run that is cut off all is kept that was measured.
Prints last where an alternative is faster; a gain of less than 3 % is noise.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from typing import Any

import torch
from ulsam_fused.kernels.gpu.backend import INTERPRETED

from benchmarks import sizes as case_list
from benchmarks.published import schema
from benchmarks.tuning import table as candidate_table
from benchmarks.tuning.calls import Work, candidates
from benchmarks.tuning.configs import (
    BACKWARD,
    CHOSEN,
    DIRECTIONS,
    FORWARD,
    NORM_BACKWARD,
    NORM_FORWARD,
    Candidate,
    Group,
)
from benchmarks.tuning.processes import Verdicts, judged
from benchmarks.tuning.timing import in_turn
from ulsam_fused.bench import report
from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.timing import Call
from ulsam_fused.cli.bench import check_case
from ulsam_fused.console import devices
from ulsam_fused.console.errors import UserError

COMPILING = 0.6  # of the time, at most
EACH = 0.1  # seconds that a candidate is timed
Row = dict[str, Any]


def groups(args: argparse.Namespace) -> list[Group]:
    """The most important first: the paper's form at every size, then the form with BatchNorm."""
    forms = ((FORWARD, BACKWARD), (NORM_FORWARD, NORM_BACKWARD))
    return [
        Group(case, direction, dtype, layout)
        for dtype, form, case in itertools.product(args.dtype or ["float16"], forms, args.case or case_list.CASES)
        for direction, layout in itertools.product(form, args.layout or LAYOUTS)
        if direction in (args.direction or DIRECTIONS)
    ]


def measured(group: Group, device: torch.device, tried: dict[str, Candidate], verdicts: Verdicts) -> list[Row]:
    """Rows of one group, of the candidates that there is a verdict on."""
    work = Work.make(group, device)

    def call(candidate: Candidate) -> Call:
        return lambda i: work.run(candidate, i)

    calls = {name: call(tried[name]) for name, error in verdicts.items() if error is None}
    times, errors = in_turn(calls, len(work.xs), EACH, device)
    errors = {name: error for name, error in verdicts.items() if error is not None} | errors
    chosen = times.get(CHOSEN)
    rows = []
    for name, candidate in tried.items():
        if name in times or name in errors:
            t = times.get(name)
            row = {**dataclasses.asdict(group), "name": name, "config": dataclasses.asdict(candidate)}
            row["error"] = errors.get(name)
            row |= {f"us_{p}": None if t is None else round(getattr(t, p), 3) for p in ("p20", "p50", "p80")}
            row["ratio"] = None if t is None or chosen is None else round(t.p50 / chosen.p50, 4)
            row["method"] = None if t is None else t.method
            rows.append(row)
    return rows


def run(args: argparse.Namespace, device: torch.device) -> tuple[pathlib.Path, list[Row], int]:
    """The file, its rows, and how many groups there was no time for."""
    start = time.monotonic()
    end = start + args.seconds
    result = report.heading(device) | ({"commit": args.commit} if args.commit else {})
    path = args.output / f"candidates-{schema.file_name(result)}"
    rows: list[Row] = []
    wanted = groups(args)
    tried = [candidates(group, device) for group in wanted]
    names = [list(found) for found in tried]
    found = judged(wanted, device, names, args.output, start + COMPILING * args.seconds)
    told, of = sum(map(len, found)), sum(map(len, names))
    print(f"{told} of {of} candidates of {len(wanted)} groups judged in {time.monotonic() - start:.0f} s", flush=True)
    left = 0
    for group, these, verdicts in zip(wanted, tried, found, strict=True):
        if time.monotonic() > end or not verdicts:
            left += 1
            continue
        rows += measured(group, device, these, verdicts)
        path.write_text(json.dumps({**result, "candidates": rows}, indent=1) + "\n")
        print(f"{group}: {sum(row['error'] is None for row in rows)} times taken so far", file=sys.stderr, flush=True)
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
    print(candidate_table.text(rows))
    if left:
        print(f"no time was left for {left} groups")
    print(f"{len(rows)} rows: {path}" if rows else "nothing was measured")
    return int(not rows)


if __name__ == "__main__":
    sys.exit(main())
