"""Checks files of results: what they hold, and that their figures agree with each other.

    python -m benchmarks.published.schema [FILE ...]  # exits 1 and says what is wrong; each file in results/ by default

ulsam_fused/bench/rows.py has the keys and their types. The rows that have case, direction, dtype and layout in common
are one for the ceiling and one for each provider.
"""

import datetime
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, get_type_hints

import torch

from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.directions import DIRECTIONS
from ulsam_fused.bench.providers import providers
from ulsam_fused.bench.rows import Heading, Result, Row, RowWorkload, workload_of
from ulsam_fused.bench.workload import Workload, check_case
from ulsam_fused.console.devices import DTYPES, FUSED
from ulsam_fused.console.errors import UserError

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
Json = dict[str, Any]  # what a file may hold, before it is known to be a Result or a Row

KEYS = frozenset(get_type_hints(Result))
COLUMNS = frozenset(get_type_hints(Row))
TIMES = ("us_p20", "us_p50", "us_p80")
NUMBERS = (*TIMES, "gbps", "percent_of_ceiling", "speedup_vs_eager", "speedup_vs_paper_eager", "host_us", "peak_mem_mb")
FORMS = {p.name: p.form for p in providers(list(FUSED), compiled=True, onnx=True)}
ONE_THREAD = "-1-thread"  # the end of a file's name, before .json
HALF_A_HUNDREDTH = 0.005  # to which times are rounded


def file_name(result: Heading) -> str:
    """The name of the file of these results: device, torch's version, on a GPU Triton's, a single thread."""
    device = result["device"].lower()
    if result["threads"] is not None:
        device = "cpu " + re.sub(r"\(r\)|\(tm\)|\b(intel|amd|cpu|processor)\b|@.*", " ", device)
    slug = re.sub(r"[^a-z0-9.]+", "-", device).strip("-")
    name = f"{slug}-torch{result['torch'].split('+')[0]}"
    if result["threads"] is None:
        name += f"-triton{result['triton']}"
    return name + (ONE_THREAD if result["threads"] == 1 else "") + ".json"


def problems(result: Any, name: str) -> list[str]:
    """All that is wrong with a file of this name and content."""
    found = list(_in_heading(result))
    if found:
        return found
    if name != file_name(result):
        found.append(f"the name should be {file_name(result)}")
    groups: dict[RowWorkload, list[Row]] = {}
    for i, row in enumerate(result["rows"]):
        wrong = list(_in_row(row, on_gpu=result["threads"] is None))
        found += [f"row {i}: {text}" for text in wrong]
        if not wrong:
            groups.setdefault(workload_of(row), []).append(row)
    for workload, rows in groups.items():
        found += [f"{' '.join(workload)}: {text}" for text in _in_group(workload, rows)]
    return found


def _in_heading(result: Json) -> Iterator[str]:
    if set(result) != KEYS:
        yield f"keys are {sorted(result)}, should be {sorted(KEYS)}"
        return
    if not (isinstance(result["device"], str) and result["device"]):
        yield "device is empty"
    if not (result["threads"] is None or (isinstance(result["threads"], int) and result["threads"] > 0)):
        yield f"threads is {result['threads']!r}"
    for key in ("torch", "triton"):
        if not re.match(r"\d+\.\d+", str(result[key])) and (key, result["threads"] is None) != ("triton", False):
            yield f"{key} is {result[key]!r}"
    if not re.fullmatch(r"[0-9a-f]{7,40}", str(result["commit"])):
        yield f"commit is {result['commit']!r}, should be one that others can check out"
    try:
        if datetime.datetime.fromisoformat(result["date"]).tzinfo is None:
            yield "date has no time zone"
    except (TypeError, ValueError):
        yield f"date is {result['date']!r}"
    if not (isinstance(result["rows"], list) and result["rows"]):
        yield "there are no rows"


def _in_row(row: Json, on_gpu: bool) -> Iterator[str]:
    if set(row) != COLUMNS:
        yield f"keys are {sorted(row)}, should be {sorted(COLUMNS)}"
        return
    try:
        check_case(row["case"])
    except (UserError, TypeError):
        yield f"case is {row['case']!r}"
    for key, known in (("direction", DIRECTIONS), ("dtype", DTYPES), ("layout", LAYOUTS)):
        if row[key] not in known:
            yield f"{key} is {row[key]!r}"
            return
    ceiling = row["provider"] == DIRECTIONS[row["direction"]].ceiling
    if not ceiling and row["provider"] not in FORMS:
        yield f"provider is {row['provider']!r}"
    elif row["form"] != FORMS.get(row["provider"]):
        yield f"form is {row['form']!r}"
    for key in NUMBERS:
        if not (row[key] is None or (isinstance(row[key], int | float) and row[key] > 0)):
            yield f"{key} is {row[key]!r}"
            return
    if row["error"] is not None:
        if not isinstance(row["error"], str) or any(row[key] is not None for key in (*NUMBERS, "method")):
            yield "it has an error, and figures"
        return
    if any(row[key] is None for key in (*TIMES, "gbps", "percent_of_ceiling", "method")):
        yield "figures are missing"
        return
    if not row["us_p20"] <= row["us_p50"] <= row["us_p80"]:
        yield "percentiles are in no order"
    for key in ("host_us", "peak_mem_mb"):
        if (row[key] is not None) != (on_gpu and not ceiling):
            yield f"{key} is {row[key]!r}"


def _in_group(at: RowWorkload, rows: list[Row]) -> Iterator[str]:
    by_name = {row["provider"]: row for row in rows}
    if len(by_name) != len(rows):
        yield "a provider has several rows"
    ceiling = by_name.get(DIRECTIONS[at.direction].ceiling)
    if ceiling is None or ceiling["us_p50"] is None:
        yield "the row of the ceiling is missing"
        return
    floor = Workload(at.case, at.direction, at.dtype, at.layout, torch.device("cpu")).floor
    for name, row in by_name.items():
        us = row["us_p50"]
        if us is None:
            continue
        if not _is_ratio(row["gbps"], 0.0001, floor / 1e3, us, exact=True):
            yield f"{name}: gbps is {row['gbps']}, but {floor} bytes took {us} us"
        if not _is_ratio(row["percent_of_ceiling"], 0.001, ceiling["us_p50"], us, factor=100):
            yield f"{name}: percent_of_ceiling is {row['percent_of_ceiling']}, {ceiling['us_p50']} us to {us}"
        over_eager, over_paper = _time(by_name.get("eager")), _time(by_name.get("paper-eager"))
        speedups = (
            ("speedup_vs_eager", row["speedup_vs_eager"], over_eager if row is not ceiling else None),
            ("speedup_vs_paper_eager", row["speedup_vs_paper_eager"], over_paper if row["form"] == "paper" else None),
        )
        for key, stated, other in speedups:
            if (other is None) != (stated is None):
                yield f"{name}: {key} is {stated}"
            elif other is not None and not _is_ratio(stated, 0.001, other, us):
                yield f"{name}: {key} is {stated}, {other} us to {us}"


def _time(row: Row | None) -> float | None:
    return None if row is None else row["us_p50"]


def _is_ratio(
    stated: float | None, unit: float, above: float, below: float, factor: float = 1, exact: bool = False
) -> bool:
    """Whether factor * above / below can be the stated number: that is rounded to `unit`, the times to hundredths."""
    if stated is None:
        return False
    lost = 0 if exact else HALF_A_HUNDREDTH
    least = factor * (above - lost) / (below + HALF_A_HUNDREDTH)
    most = factor * (above + lost) / max(below - HALF_A_HUNDREDTH, 1e-9)
    return least - 0.51 * unit <= stated <= most + 0.51 * unit


def main(names: list[str]) -> int:
    paths = [pathlib.Path(name) for name in names] or sorted(RESULTS.glob("*.json"))
    wrong = 0
    for path in paths:
        found = problems(json.loads(path.read_text()), path.name)
        wrong += bool(found)
        print("\n".join(f"{path.name}: {text}" for text in found or ["as it should be"]))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
