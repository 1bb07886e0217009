"""What rows of candidates say: the best of each group, and each alternative over all sizes."""

import math
from collections.abc import Iterator
from typing import Any

from benchmarks.tuning.configs import CHOSEN

NOISE = 0.03  # a gain that is smaller says nothing
KEY = ("case", "direction", "dtype", "layout")
Row = dict[str, Any]


def best(rows: list[Row]) -> list[tuple[Row, Row | None, float]]:
    """Of each group the chosen row, the fastest alternative, None where there is none, and its gain; most gain first.

    The gain is the share of the chosen one's time that it saves.
    """
    found = []
    for group in _groups(rows):
        chosen = next((row for row in group if row["name"] == CHOSEN), None)
        if chosen is not None and chosen["us_p50"] is not None:
            others = [row for row in group if row is not chosen and row["us_p50"] is not None]
            fastest = min(others, key=lambda row: float(row["us_p50"]), default=None)
            found.append((chosen, fastest, 0.0 if fastest is None else 1 - fastest["us_p50"] / chosen["us_p50"]))
    return sorted(found, key=lambda line: -line[2])


def over_sizes(rows: list[Row]) -> list[tuple[str, int, float, float, float]]:
    """Direction, type, layout and name; in how many sizes; and its ratio to the chosen time: mean, least and most.

    The mean is geometric. A constant of launching/config.py serves many sizes, so it is here that it shows its worth.
    """
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["name"] != CHOSEN and row["ratio"] is not None:
            label = f"{row['direction']} {row['dtype']} {row['layout']}: {row['name']}"
            ratios.setdefault(label, []).append(row["ratio"])
    lines = [
        (label, len(found), math.exp(sum(map(math.log, found)) / len(found)), min(found), max(found))
        for label, found in ratios.items()
    ]
    return sorted(lines, key=lambda line: line[2])


def text(rows: list[Row]) -> str:
    """Both, and what failed."""
    lines = ["", "over all sizes: time as a ratio to the chosen one, geometric mean (least to most)"]
    lines += [
        f"  {mean:.3f} ({least:.3f} to {most:.3f}) at {count:2} sizes  {label}"
        for label, count, mean, least, most in over_sizes(rows)
        if mean <= 1 - NOISE
    ] or ["  none is faster by more than noise"]
    wrong = [row for row in rows if row["error"] is not None]
    lines += ["", f"wrong or failing: {len(wrong)}"] * bool(wrong)
    lines += [f"  {' '.join(row[key] for key in KEY)}, {row['name']}: {row['error']}" for row in wrong]
    lines += ["", "of each group the chosen time, the best alternative and its gain"]
    noise = False
    for chosen, fastest, gain in best(rows):
        if gain < NOISE and not noise:
            noise = True
            lines.append(f"below: gains of less than {NOISE:.0%}, which are noise")
        label = " ".join(chosen[key] for key in KEY)
        other = "no alternative" if fastest is None else f"{fastest['us_p50']:9.2f} us {gain:6.1%}  {fastest['name']}"
        lines.append(f"  {label:52} {chosen['us_p50']:9.2f} us  {other}")
    return "\n".join(lines)


def _groups(rows: list[Row]) -> Iterator[list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in KEY), []).append(row)
    yield from found.values()
