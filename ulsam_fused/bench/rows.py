"""What `bench` writes as JSON: a heading, and one row for each provider at each workload."""

import datetime
import json
import pathlib
import subprocess
from typing import NamedTuple, TypedDict

import torch

from ..console import devices
from .directions import DIRECTIONS
from .providers import Provider
from .timing import Timing
from .workload import Workload


class Heading(TypedDict):
    """What every row was measured with."""

    device: str
    threads: int | None  # None on a GPU
    torch: str
    triton: str | None
    commit: str | None
    date: str


class Row(TypedDict):
    """A provider or the ceiling at one workload. What was not measured, or means nothing there, is None."""

    case: str
    direction: str
    dtype: str
    layout: str
    provider: str
    form: str | None  # None: the ceiling
    error: str | None
    us_p50: float | None
    us_p20: float | None
    us_p80: float | None
    gbps: float | None
    percent_of_ceiling: float | None
    speedup_vs_eager: float | None
    speedup_vs_paper_eager: float | None
    host_us: float | None  # this and the next: on a GPU
    peak_mem_mb: float | None
    method: str | None


class Result(Heading):
    rows: list[Row]


class RowWorkload(NamedTuple):
    """What rows are compared at: there is one row for each provider, and one for the ceiling."""

    case: str
    direction: str
    dtype: str
    layout: str


def workload_of(row: Row) -> RowWorkload:
    return RowWorkload(row["case"], row["direction"], row["dtype"], row["layout"])


class OnGpu(NamedTuple):
    """What is measured of a provider on a GPU beside its time."""

    host_us: float
    peak_mem_mb: float


class Measured(NamedTuple):
    """One workload, by the names of providers; the ceiling is one of the timings."""

    timings: dict[str, Timing]
    on_gpu: dict[str, OnGpu]


def heading(device: torch.device) -> Heading:
    return {
        "device": devices.name_of(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "triton": devices.triton_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


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


def row(workload: Workload, provider: Provider | None, measured: Measured, error: str | None) -> Row:
    """The row of a provider, or of the ceiling where provider is None."""
    timings = measured.timings
    ceiling = DIRECTIONS[workload.direction].ceiling
    name = provider.name if provider else ceiling
    timing, on_gpu = timings.get(name), measured.on_gpu.get(name)
    us = timing.p50 if timing else None

    def relative_to(other: str) -> float | None:
        return timings[other].p50 / us if us and other in timings else None

    share = relative_to(ceiling)
    in_paper_form = provider is not None and provider.form == "paper"
    return {
        "case": workload.case,
        "direction": workload.direction,
        "dtype": workload.dtype,
        "layout": workload.layout,
        "provider": name,
        "form": provider.form if provider else None,
        "error": error,
        "us_p50": _rounded(us, 2),
        "us_p20": _rounded(timing.p20 if timing else None, 2),
        "us_p80": _rounded(timing.p80 if timing else None, 2),
        "gbps": _rounded(workload.floor / us / 1e3, 4) if us else None,
        "percent_of_ceiling": None if share is None else _rounded(100 * share, 3),
        "speedup_vs_eager": _rounded(relative_to("eager"), 3) if provider else None,
        "speedup_vs_paper_eager": _rounded(relative_to("paper-eager"), 3) if in_paper_form else None,
        "host_us": _rounded(on_gpu.host_us if on_gpu else None, 2),
        "peak_mem_mb": _rounded(on_gpu.peak_mem_mb if on_gpu else None, 2),
        "method": timing.method if timing else None,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def read(path: pathlib.Path) -> Result:
    """A file of results, as it stands: nothing is checked."""
    result: Result = json.loads(path.read_text())
    return result
