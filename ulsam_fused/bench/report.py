"""What `bench` says: rows for JSON, and the table."""

import datetime
import itertools
import pathlib
import subprocess
import sys
from typing import Any

import torch

from ..console import devices
from .directions import DIRECTIONS
from .providers import Provider
from .timing import Timing
from .workload import Setting


def heading(device: torch.device) -> dict[str, Any]:
    """What every row was measured with."""
    return {
        "device": devices.name_of(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "triton": devices.triton_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def heading_line(result: dict[str, Any]) -> str:
    """A heading as the first line of a table."""
    threads = f", threads: {result['threads']}" if result["threads"] else ""
    triton, at = result["triton"] or "none", result["commit"] or "unknown"
    return f"{result['device']}{threads}, torch {result['torch']}, triton {triton}, commit {at}, {result['date']}"


def progress(line: str) -> None:
    """What is being done, on standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" where files differ; None outside a checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def row(
    setting: Setting,
    provider: Provider | None,
    timings: dict[str, Timing],
    error: str | None,
    extras: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """One line of the result; provider None is the ceiling. Numbers that were not measured are None."""
    ceiling = DIRECTIONS[setting.direction].ceiling
    name = provider.name if provider else ceiling
    timing = timings.get(name)
    us = timing.p50 if timing else None

    def relative_to(other: str) -> float | None:
        return timings[other].p50 / us if us and other in timings else None

    share = relative_to(ceiling)
    in_paper_form = provider is not None and provider.form == "paper"
    return {
        "case": setting.case,
        "direction": setting.direction,
        "dtype": setting.dtype,
        "layout": setting.layout,
        "provider": name,
        "form": provider.form if provider else None,
        "error": error,
        "us_p50": _rounded(us, 2),
        "us_p20": _rounded(timing.p20 if timing else None, 2),
        "us_p80": _rounded(timing.p80 if timing else None, 2),
        "gbps": _rounded(setting.floor / us / 1e3, 4) if us else None,
        "percent_of_ceiling": None if share is None else _rounded(100 * share, 3),
        "speedup_vs_eager": _rounded(relative_to("eager"), 3) if provider else None,
        "speedup_vs_paper_eager": _rounded(relative_to("paper-eager"), 3) if in_paper_form else None,
        "host_us": _rounded(extras.get(name, {}).get("host_us"), 2),
        "peak_mem_mb": _rounded(extras.get(name, {}).get("peak_mem_mb"), 2),
        "method": timing.method if timing else None,
    }


def table(result: dict[str, Any], providers: list[Provider]) -> str:
    """All rows, a block for each size and direction, and what each provider computes."""
    lines = [heading_line(result)]
    for key, group in itertools.groupby(
        result["rows"], key=lambda r: f"{r['case']}  {r['direction']}  {r['dtype']}  {r['layout']}"
    ):
        rows = list(group)
        measured_on_gpu = any(r["host_us"] is not None for r in rows)
        head = f"{'provider':<20} {'computes':<9} {'median us':>10} {'p20':>9} {'p80':>9}"
        head += f" {'vs eager':>9} {'vs paper':>9} {'GB/s':>7} {'% ceiling':>9}"
        head += f" {'host us':>8} {'peak MB':>8}" if measured_on_gpu else ""
        lines += ["", key, head]
        lines += [_line(r, measured_on_gpu) for r in rows]
    return "\n".join([*lines, "", *_footnotes(result, providers)])


def _line(r: dict[str, Any], gpu: bool) -> str:
    start = f"{r['provider']:<20} {r['form'] or '-':<9} "
    if r["error"]:
        return start + str(r["error"])
    line = start + f"{r['us_p50']:>10.1f} {r['us_p20']:>9.1f} {r['us_p80']:>9.1f}"
    line += f" {_times(r['speedup_vs_eager']):>9} {_times(r['speedup_vs_paper_eager']):>9}"
    line += f" {r['gbps']:>7.2f} {r['percent_of_ceiling']:>9.1f}"
    return line + (f" {_number(r['host_us']):>8} {_number(r['peak_mem_mb']):>8}" if gpu else "")


def _footnotes(result: dict[str, Any], providers: list[Provider]) -> list[str]:
    directions = {r["direction"] for r in result["rows"]}
    measured = {r["provider"] for r in result["rows"]}
    shown = [p for p in providers if p.name in measured]
    methods = sorted({r["method"] for r in result["rows"] if r["method"]})
    notes = [f"  {p.name:<20} {p.form:<9} {p.note}" for p in shown]
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


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
