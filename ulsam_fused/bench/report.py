"""What `bench` prints: a table that fits a screen, or every figure with notes."""

import itertools
import re
import textwrap

from ..console.tables import aligned
from .directions import DIRECTIONS
from .providers import Provider
from .rows import Heading, Result, Row, workload_of

WIDTH = 80  # columns of a screen


def heading_lines(heading: Heading) -> list[str]:
    """A heading as the first lines of a table."""
    threads = f", threads: {heading['threads']}" if heading["threads"] else ""
    triton, at = heading["triton"] or "none", heading["commit"] or "unknown"
    line = f"{heading['device']}{threads}, torch {heading['torch']}, triton {triton}, commit {at}, {heading['date']}"
    return textwrap.wrap(line, WIDTH)


def summary(result: Result) -> str:
    """A line for each size and direction, a column for each provider; then every error in full."""
    names = list(dict.fromkeys(row["provider"] for row in result["rows"] if row["form"] is not None))
    parts = [re.split(r"(?=[\[+])|(?<=-)", name) for name in names]  # fused[torch]+norm in three lines
    height = max((len(words) for words in parts), default=0)
    table = [["", *((words + [""] * height)[i] for words in parts)] for i in range(height)]
    headings, last = [""] * height, ""  # of every line: the size, where it differs from the line before
    for at, group in itertools.groupby(result["rows"], key=workload_of):
        by_name = {row["provider"]: row for row in group}
        table.append([f"  {at.direction}", *(_cell(by_name.get(name)) for name in names)])
        heading = f"{at.case}  {at.dtype}  {at.layout}\n"
        headings.append("" if heading == last else heading)
        last = heading
    lines = map(str.__add__, headings, aligned(table, left=1, gap=1))
    wrong = [
        f"{row['provider']} at {' '.join(workload_of(row))}: {row['error']}" for row in result["rows"] if row["error"]
    ]
    notes = [
        "eager: the authors' module in eager PyTorch, median time. Others: times faster.",
        "fused: the paper's form, less work; +norm: the authors' form. More: --verbose.",
    ]
    return "\n".join([*heading_lines(result), "", *lines, "", *wrong, *[""] * bool(wrong), *notes])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["error"]:
        return row["error"].split(":")[0].split()[0]
    return _times(row["speedup_vs_eager"]) if row["provider"] != "eager" and row["speedup_vs_eager"] else _us(row)


def _us(row: Row) -> str:
    us = row["us_p50"] or 0.0
    return f"{us:.1f} us" if us < 10_000 else f"{us / 1000:.1f} ms"


def details(result: Result, providers: list[Provider]) -> str:
    """Every figure, a block for each size and direction, and what each provider computes."""
    lines = heading_lines(result)
    for at, group in itertools.groupby(result["rows"], key=workload_of):
        rows = list(group)
        on_gpu = any(row["host_us"] is not None for row in rows)
        head = ["provider", "computes", "median us", "p20", "p80", "vs eager", "vs paper", "GB/s", "% ceiling"]
        head += ["host us", "peak MB"] if on_gpu else []
        table = [head, *(_figures(row, on_gpu) for row in rows if not row["error"])]
        lines += ["", "  ".join(at), *aligned(table, left=2)]
        lines += [f"{row['provider']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join([*lines, "", *_notes(result, providers)])


def _figures(row: Row, on_gpu: bool) -> list[str]:
    cells = [row["provider"], row["form"] or "-"]
    cells += [_number(row[key]) for key in ("us_p50", "us_p20", "us_p80")]
    cells += [_times(row["speedup_vs_eager"]), _times(row["speedup_vs_paper_eager"])]
    cells += [_number(row["gbps"], 2), _number(row["percent_of_ceiling"])]
    return cells + ([_number(row["host_us"]), _number(row["peak_mem_mb"])] if on_gpu else [])


def _notes(result: Result, providers: list[Provider]) -> list[str]:
    directions = {row["direction"] for row in result["rows"]}
    measured = {row["provider"] for row in result["rows"]}
    methods = sorted({row["method"] for row in result["rows"] if row["method"]})
    notes = aligned([["", p.name, p.form, p.note] for p in providers if p.name in measured])
    notes.append("upstream: with biases, two BatchNorms and ReLUs. paper: 2*C weights and nothing else, so less work.")
    if "forward" in directions:
        notes.append("forward: no gradients; upstream in eval mode (running statistics).")
    if "backward" in directions:
        notes.append("backward: the second half of forward+backward alone, of a forward pass that was kept.")
    if directions & {"backward", "forward+backward"}:
        notes.append(
            "forward+backward: gradients of x and all parameters; upstream in training mode, with batch statistics,\n"
            "  which the paper's form does not have: vs paper compares the same function."
        )
    if "train-norm" in directions:
        notes.append("train-norm: forward and backward of upstream alone, in training mode, with batch statistics.")
    counts = ", ".join(f"{DIRECTIONS[name].passes} {name}" for name in DIRECTIONS if name in directions)
    ceilings = "; ".join(dict.fromkeys(DIRECTIONS[name].ceiling for name in DIRECTIONS if name in directions))
    notes += [
        "vs eager, vs paper: how many times faster than eager, and than paper-eager (the same function).",
        f"GB/s: the fewest bytes the work can move (passes over x: {counts or 'none'}) by the median time.",
        f"% ceiling: the time of moving just those bytes ({ceilings or 'none'}), in percent of the provider's.",
        f"times: {'; '.join(methods) or 'none taken'}.",
    ]
    return notes


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
