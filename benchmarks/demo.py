"""The last four lines of `make demo`: what ran, the speed-up that was measured, and where the pictures are.

python -m benchmarks.demo out/bench.json out/bench.png out/attention.png
"""

import pathlib
import sys

from ulsam_fused.bench import rows
from ulsam_fused.bench.rows import Result, Row


def lines(result: Result, times: pathlib.Path, maps: pathlib.Path) -> list[str]:
    """The authors' module, fused against eager, is the comparison: both compute the same."""
    threads = f", {result['threads']} threads" if result["threads"] else ""
    fused = [row for row in result["rows"] if row["provider"].endswith("]+norm") and row["speedup_vs_eager"]]
    found = [
        f"{_span(fused, direction)} {name}"
        for direction, name in (("forward", "forward"), ("train-norm", "in training"))
        if _of(fused, direction)
    ]
    return [
        f"ran       info, check, bench and attend on {result['device']}{threads}",
        f"speed-up  of the authors' module: {', '.join(found) or 'not measured'}",
        f"times     {times}",
        f"maps      {maps}",
    ]


def _of(fused: list[Row], direction: str) -> list[float]:
    """The speed-ups of the fastest backend, one for each size."""
    sizes: dict[str, float] = {}
    for row in fused:
        if row["direction"] == direction and row["speedup_vs_eager"]:
            sizes[row["case"]] = max(sizes.get(row["case"], 0.0), row["speedup_vs_eager"])
    return sorted(sizes.values())


def _span(fused: list[Row], direction: str) -> str:
    found = _of(fused, direction)
    low, *_, high = found * 2
    return f"{low:.1f} to {high:.1f}x" if len(found) > 1 else f"{low:.1f}x"


if __name__ == "__main__":
    table, times, maps = map(pathlib.Path, sys.argv[1:])
    print("\n".join(lines(rows.read(table), times, maps)))
