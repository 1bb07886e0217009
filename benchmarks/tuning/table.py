"""Ranks candidates: the best of each target, and each alternative over all sizes."""

import statistics
from typing import Any, NamedTuple, TypedDict

from benchmarks.tuning.configs import CHOSEN, Target
from ulsam_fused.console.tables import aligned

NOISE = 0.03  # a smaller gain says nothing


class Row(TypedDict):
    """A candidate for a target."""

    case: str
    direction: str
    dtype: str
    layout: str
    name: str
    config: dict[str, Any]  # of the candidate, as dataclasses.asdict gives it
    error: str | None
    us_p20: float | None
    us_p50: float | None
    us_p80: float | None
    ratio: float | None  # to the chosen configuration's time
    method: str | None


class Best(NamedTuple):
    """The fastest alternative for a target, None where there is none."""

    target: Target
    chosen_us: float
    name: str | None
    us: float

    @property
    def gain(self) -> float:
        """The share of the chosen configuration's time that it saves."""
        return 1 - self.us / self.chosen_us


class OverSizes(NamedTuple):
    """An alternative at all sizes: its ratio to the chosen time, geometric mean, least and most."""

    name: str  # with direction, type and memory format
    sizes: int
    mean: float
    least: float
    most: float


def best(rows: list[Row]) -> list[Best]:
    """Of every target whose chosen configuration has a time; most gain first."""
    times: dict[Target, dict[str, float]] = {}
    for row in rows:
        if row["us_p50"] is not None:
            times.setdefault(_target(row), {})[row["name"]] = row["us_p50"]
    found = []
    for target, by_name in times.items():
        chosen = by_name.pop(CHOSEN, None)
        if chosen is not None:
            name = min(by_name, key=by_name.__getitem__, default=None)
            found.append(Best(target, chosen, name, chosen if name is None else by_name[name]))
    return sorted(found, key=lambda line: -line.gain)


def over_sizes(rows: list[Row]) -> list[OverSizes]:
    """Every alternative, the fastest first: a constant of launching/config.py serves many sizes."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["name"] != CHOSEN and row["ratio"] is not None:
            label = f"{row['direction']} {row['dtype']} {row['layout']}: {row['name']}"
            ratios.setdefault(label, []).append(row["ratio"])
    lines = [
        OverSizes(label, len(found), statistics.geometric_mean(found), min(found), max(found))
        for label, found in ratios.items()
    ]
    return sorted(lines, key=lambda line: line.mean)


def text(rows: list[Row]) -> str:
    """Both, and what failed."""
    lines = ["", "over all sizes: time as a ratio to the chosen one, geometric mean (least to most)"]
    lines += [
        f"  {line.mean:.3f} ({line.least:.3f} to {line.most:.3f}) at {line.sizes:2} sizes  {line.name}"
        for line in over_sizes(rows)
        if line.mean <= 1 - NOISE
    ] or ["  none is faster by more than noise"]
    wrong = [row for row in rows if row["error"] is not None]
    lines += ["", f"wrong or failing: {len(wrong)}"] * bool(wrong)
    lines += [f"  {_target(row)}, {row['name']}: {row['error']}" for row in wrong]
    found = best(rows)
    gains = [line for line in found if line.gain >= NOISE]
    lines += ["", "of each target the chosen time, the best alternative and its gain", *_lines(gains)]
    if len(gains) < len(found):
        lines += [f"below: gains of less than {NOISE:.0%}, which are noise", *_lines(found[len(gains) :])]
    return "\n".join(lines)


def _lines(found: list[Best]) -> list[str]:
    table = []
    for line in found:
        other = ["no alternative", ""] if line.name is None else [f"{line.us:.2f} us", f"{line.gain:.1%}  {line.name}"]
        table.append([f"  {line.target}", f"{line.chosen_us:.2f} us", *other])
    return aligned(table) if table else []


def _target(row: Row) -> Target:
    return Target(row["case"], row["direction"], row["dtype"], row["layout"])
