"""Bars of `bench`'s rows. Needs matplotlib, the extra `plot`."""

import importlib
import math
import pathlib

from ..console import files
from ..console.errors import UserError
from .rows import Result, Row

COLOURS = {  # by provider; the fused ones stand out
    "eager": "#8c8c8c",
    "eager+compile": "#bdbdbd",
    "paper-eager": "#5b7fa6",
    "vectorised": "#8fb3d9",
    "vectorised+compile": "#c3d9ef",
    "vectorised+onnx": "#a9a3d6",
    "fused[triton]": "#c8442e",
    "fused[triton]+norm": "#e58a6f",
    "fused[cpp]": "#2a9d5c",
    "fused[cpp]+norm": "#7fcf9f",
    "fused[torch]": "#d98a1f",
    "fused[torch]+norm": "#edbd78",
}


def matplotlib_problem() -> str | None:
    """Why nothing can be drawn here; None where it can."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        return f"needs matplotlib ({error}): pip install 'ulsam_fused[plot]'"
    return None


def require(path: pathlib.Path) -> None:
    """Raises UserError where a picture cannot be drawn to this path."""
    problem = matplotlib_problem()
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the name of a picture must end in .png")


def bars(result: Result, path: pathlib.Path) -> None:
    """A panel for each direction and a group of bars for each size: median times, with whiskers from p20 to p80."""
    import numpy
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["us_p50"] is not None and row["form"] is not None]
    directions = list(dict.fromkeys(row["direction"] for row in rows)) or ["forward"]
    groups = {d: list(dict.fromkeys(_group(r) for r in rows if r["direction"] == d)) for d in directions}
    width = max(7.0, 1.0 + 0.17 * max(len([r for r in rows if r["direction"] == d]) for d in directions) + 1.0)
    figure = Figure(figsize=(width, 1.0 + 3.2 * len(directions)), layout="constrained", dpi=150)
    names = list(dict.fromkeys(row["provider"] for row in rows))
    for panel, direction in enumerate(directions, start=1):
        axes = figure.add_subplot(len(directions), 1, panel)
        shown = [row for row in rows if row["direction"] == direction]
        here = [name for name in names if any(row["provider"] == name for row in shown)]
        step = 0.85 / max(1, len(here))
        for i, name in enumerate(here):
            mine = [row for row in shown if row["provider"] == name]
            at = [groups[direction].index(_group(row)) + (i - (len(here) - 1) / 2) * step for row in mine]
            p20, p50, p80 = (numpy.array([row[key] for row in mine]) for key in ("us_p20", "us_p50", "us_p80"))
            axes.bar(
                at, p50, step * 0.92, yerr=[p50 - p20, p80 - p50], error_kw={"elinewidth": 0.8},
                color=COLOURS.get(name, "black"), label=f"{name} ({mine[0]['form']})",
            )  # fmt: skip
        axes.set_yscale("log")
        if shown:  # a logarithmic axis has no 0 for bars to stand on: they stand on a power of ten
            axes.set_ylim(bottom=10 ** math.floor(math.log10(min(row["us_p20"] or 1.0 for row in shown)) - 0.1))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axes.set_ylabel("µs per call (log scale)")
        axes.set_title(direction, loc="left", fontsize=10, fontweight="bold")
        axes.set_xticks(range(len(groups[direction])), groups[direction], fontsize=8)
        axes.grid(axis="y", which="major", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    threads = f", threads: {result['threads']}" if result["threads"] else ""
    figure.suptitle(f"{result['device']}{threads}, torch {result['torch']}, {result['date'][:10]}", fontsize=9)
    files.replace(path, lambda file: figure.savefig(file, format="png"))


def _group(row: Row) -> str:
    return f"{row['case']}\n{row['dtype']} {row['layout']}"
