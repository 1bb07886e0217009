"""What a file of results holds, and whether its figures agree with each other.

    python -m benchmarks.published.schema [FILE ...]  # exits 1 and says what is wrong; each file in results/ by default

A result is {device, threads, torch, triton, commit, date, rows}; threads is null on a GPU. In a group of rows, which
have case, direction, dtype and layout in common, there is one for the ceiling and one for each provider.
"""

import datetime
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.directions import DIRECTIONS
from ulsam_fused.bench.providers import providers
from ulsam_fused.bench.workload import Setting
from ulsam_fused.cli.bench import check_case
from ulsam_fused.console.devices import DTYPES, FUSED
from ulsam_fused.console.errors import UserError

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
Row = dict[str, Any]

HEADING = ("device", "threads", "torch", "triton", "commit", "date", "rows")
GROUP = ("case", "direction", "dtype", "layout")
TIMES = ("us_p20", "us_p50", "us_p80")
NUMBERS = (*TIMES, "gbps", "percent_of_ceiling", "speedup_vs_eager", "speedup_vs_paper_eager", "host_us", "peak_mem_mb")
COLUMNS = (*GROUP, "provider", "form", "error", *NUMBERS, "method")
FORMS = {p.name: p.form for p in providers(list(FUSED), compiled=True)}
HALF_A_HUNDREDTH = 0.005  # to which times are rounded


def file_name(result: dict[str, Any]) -> str:
    """The name of the file of these results: device and versions, Triton's where it was what ran."""
    device = result["device"].lower()
    if result["threads"] is not None:
        device = "cpu " + re.sub(r"\(r\)|\(tm\)|\b(intel|amd|cpu|processor)\b|@.*", " ", device)
    name = f"{_slug(device)}-torch{result['torch'].split('+')[0]}"
    return name + ("" if result["threads"] is not None else f"-triton{result['triton']}") + ".json"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def problems(result: dict[str, Any], name: str) -> list[str]:
    """All that is wrong with a file of this name; an empty list where nothing is."""
    found = list(_in_heading(result))
    if found:
        return found
    if name != file_name(result):
        found.append(f"the name should be {file_name(result)}")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for i, row in enumerate(result["rows"]):
        wrong = list(_in_row(row, on_gpu=result["threads"] is None))
        found += [f"row {i}: {text}" for text in wrong]
        if not wrong:
            groups.setdefault(tuple(row[key] for key in GROUP), []).append(row)
    for group, rows in groups.items():
        found += [f"{' '.join(group)}: {text}" for text in _in_group(group, rows)]
    return found


def _in_heading(result: dict[str, Any]) -> Iterator[str]:
    if set(result) != set(HEADING):
        yield f"keys are {sorted(result)}, should be {sorted(HEADING)}"
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


def _in_row(row: Row, on_gpu: bool) -> Iterator[str]:
    if set(row) != set(COLUMNS):
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


def _in_group(group: tuple[str, ...], rows: list[Row]) -> Iterator[str]:
    case, direction, dtype, layout = group
    by_name = {row["provider"]: row for row in rows}
    if len(by_name) != len(rows):
        yield "a provider has several rows"
    ceiling = by_name.get(DIRECTIONS[direction].ceiling)
    if ceiling is None:
        yield "the row of the ceiling is missing"
        return
    floor = Setting(case, direction, dtype, layout, torch.device("cpu")).floor
    for name, row in by_name.items():
        us = row["us_p50"]
        if us is None:
            continue
        if not _is_ratio(row["gbps"], 0.0001, floor / 1e3, us, exact=True):
            yield f"{name}: gbps is {row['gbps']}, but {floor} bytes took {us} us"
        if not _is_ratio(row["percent_of_ceiling"], 0.001, ceiling["us_p50"], us, factor=100):
            yield f"{name}: percent_of_ceiling is {row['percent_of_ceiling']}, {ceiling['us_p50']} us to {us}"
        paper = row["form"] == "paper"
        for key, baseline in (("speedup_vs_eager", "eager"), ("speedup_vs_paper_eager", "paper-eager")):
            other = by_name.get(baseline, {}).get("us_p50")
            expected = other is not None and row is not ceiling and (baseline == "eager" or paper)
            if expected != (row[key] is not None):
                yield f"{name}: {key} is {row[key]}"
            elif expected and not _is_ratio(row[key], 0.001, other, us):
                yield f"{name}: {key} is {row[key]}, {other} us to {us}"


def _is_ratio(stated: float, unit: float, above: float, below: float, factor: float = 1, exact: bool = False) -> bool:
    """Whether above / below can have come to the stated number, all of them being rounded."""
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
