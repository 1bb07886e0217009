"""Draws each file of results: a picture of its speed of light, one of its speedups, one of its memory.

    python -m benchmarks.published.plots          # draws <file>-<kind>.png beside each file in results/, by matplotlib
    python -m benchmarks.published.plots --check  # exits 1 where a picture is missing, out of date or of no file

A picture carries the hash of its results, so `--check` notices an old one.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks import sizes
from benchmarks.published.schema import RESULTS
from ulsam_fused.bench import plot
from ulsam_fused.bench.directions import DIRECTIONS
from ulsam_fused.bench.rows import Result, Row, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HASH = "Results"  # the keyword of the hash among the texts of a PNG
MARKERS = {"nchw": "o", "channels_last": "D"}
Column = Literal["percent_of_ceiling", "speedup_vs_eager", "peak_mem_mb"]


@dataclass(frozen=True)
class Kind:
    """What a picture shows of the rows."""

    column: Column
    title: str
    line: float | None  # where to draw a line to compare with: the ceiling, or eager
    without: str | None = None  # the provider that the line stands for


KINDS = {
    "speed-of-light": Kind(
        "percent_of_ceiling", "Speed of light: the time of moving the fewest bytes, in percent of the provider's", 100
    ),
    "speedup": Kind("speedup_vs_eager", "Speedup: times faster than the authors' module in eager mode", 1, "eager"),
    "memory": Kind("peak_mem_mb", "Memory: what one call needs at its peak, in MB", None),
}
LINEAR_FROM = 50  # percent: where no provider gets this far, a logarithmic axis keeps the points apart


def published(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of results in a folder; those that tuning writes have other rows."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("candidates-"))


def wanted(result: Result) -> list[str]:
    """The kinds of picture that a result has figures for; a CPU has none of memory."""
    return [name for name, kind in KINDS.items() if _rows(result, kind)]


def picture(path: pathlib.Path, kind: str) -> pathlib.Path:
    """Where the picture of a file lies."""
    return path.with_name(f"{path.stem}-{kind}.png")


def _rows(result: Result, kind: Kind) -> list[Row]:
    """The providers' rows that have the figure."""
    return [
        row
        for row in result["rows"]
        if row["form"] is not None and row[kind.column] is not None and row["provider"] != kind.without
    ]


def draw(result: Result, name: str, target: pathlib.Path) -> None:
    """One panel for each direction and type; a line for every size, a dot for every provider."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    kind = KINDS[name]
    rows = _rows(result, kind)
    cases = sizes.by_map({row["case"] for row in rows})
    directions = [name for name in DIRECTIONS if any(row["direction"] == name for row in rows)]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    size = (1.4 + 3.3 * len(directions), 1.5 + (0.35 + 0.24 * len(cases)) * len(dtypes))
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    panels = figure.subplots(len(dtypes), len(directions), squeeze=False, sharex=True, sharey=True)
    values = [value for row in rows if (value := row[kind.column]) is not None]
    if kind.line == 100 and max(values) >= LINEAR_FROM:
        panels[0, 0].set_xlim(0, 105)
    else:
        panels[0, 0].set_xscale("log")
        panels[0, 0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
        panels[0, 0].xaxis.set_minor_locator(NullLocator())
    for i, dtype in enumerate(dtypes):
        for j, direction in enumerate(directions):
            shown = [row for row in rows if (row["dtype"], row["direction"]) == (dtype, direction)]
            _panel(panels[i, j], shown, cases, kind)
            panels[i, j].set_title(f"{direction}, {dtype}", loc="left", fontsize=9, fontweight="bold")
    _legend(figure, rows)
    threads = f", {result['threads']} threads" if result["threads"] else ""
    at = f"{result['device']}{threads}, torch {result['torch']}, commit {result['commit']}, {result['date'][:10]}"
    figure.suptitle(f"{kind.title}\n{at}", fontsize=9)
    figure.savefig(target, metadata={HASH: digest(result), "Software": None})


def _panel(axes: "Axes", rows: list[Row], cases: list[str], kind: Kind) -> None:
    layouts = [layout for layout in MARKERS if any(row["layout"] == layout for row in rows)]
    for name, colour in plot.COLOURS.items():
        for layout in layouts:
            mine = [row for row in rows if (row["provider"], row["layout"]) == (name, layout)]
            aside = 0.0 if len(layouts) == 1 else 0.18 * (2 * layouts.index(layout) - 1)
            axes.scatter(
                [row[kind.column] or 0.0 for row in mine], [cases.index(row["case"]) + aside for row in mine],
                s=34 if layout == "nchw" else 24, marker=MARKERS[layout], color=colour, edgecolors="#444444",
                linewidths=0.4, zorder=3 if name.startswith("fused") else 2,
            )  # fmt: skip
    if kind.line is not None:
        axes.axvline(kind.line, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", which="major", alpha=0.35)
    axes.grid(axis="y", alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: "Figure", rows: list[Row]) -> None:
    from matplotlib.lines import Line2D

    forms = {row["provider"]: row["form"] for row in rows}
    entries = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{name} ({forms[name]})")
        for name, colour in plot.COLOURS.items()
        if name in forms
    ]
    layouts = [layout for layout in MARKERS if any(row["layout"] == layout for row in rows)]
    if len(layouts) > 1:
        entries += [
            Line2D([], [], marker=MARKERS[layout], linestyle="", color="none", markeredgecolor="black", label=layout)
            for layout in layouts
        ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def digest(result: Result) -> str:
    """A hash of the results."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def drawn_from(target: pathlib.Path) -> str | None:
    """The hash that a PNG carries; None where there is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(target) as image:
            text: str | None = image.info.get(HASH)
    except UnidentifiedImageError:
        return None
    return text


def problems(folder: pathlib.Path) -> list[str]:
    """Pictures that are missing, out of date, or of no file."""
    found = []
    expected = set()
    for path in published(folder):
        result = read(path)
        for kind in wanted(result):
            target = picture(path, kind)
            expected.add(target)
            if not target.exists():
                found.append(f"{target.name} is missing")
            elif drawn_from(target) != digest(result):
                found.append(f"{target.name} was not drawn from what {path.name} says now")
    return found + [f"{path.name} belongs to no file" for path in sorted(set(folder.glob("*.png")) - expected)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=RESULTS, help="of the files (default: results/)")
    parser.add_argument("--check", action="store_true", help="draw nothing, only compare")
    arguments = parser.parse_args()
    folder: pathlib.Path = arguments.folder
    if arguments.check:
        found = problems(folder)
        print("\n".join(found) or "files and pictures agree")
        return int(bool(found))
    for path in published(folder):
        result = read(path)
        for kind in KINDS:
            if kind in wanted(result):
                draw(result, kind, picture(path, kind))
                print(f"drawn: {picture(path, kind)}")
            else:
                print(f"{path.name} has no figures for {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
