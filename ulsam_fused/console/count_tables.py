"""The tables that `count` shows, as plain text and as Markdown."""

import functools
import textwrap
from decimal import Decimal
from typing import NamedTuple

import torch

from .. import models
from ..models import published
from ..models.attention_modules import MODULES
from ..models.counting import RULES, Count, count
from ..models.published import Figure, Row
from .tables import aligned, piped

CHANNELS, SIDE = 512, 14
"""What attention modules are compared at."""


class Compared(NamedTuple):
    """A line of the paper's tables beside ours."""

    row: Row
    weights: Figure
    macs: Figure

    @property
    def agrees(self) -> bool:
        return self.weights.agrees and self.macs.agrees


class Module(NamedTuple):
    """An attention module at 512x14x14."""

    name: str
    cost: Count
    options: str


def compared() -> list[Compared]:
    """Every model of the paper's tables, counted."""
    every = published.rows()
    lines = []
    for row in every:
        vanilla = published.vanilla_of(row, every)
        lines.append(Compared(row, *published.compare(row, _counted(row), vanilla, _counted(vanilla))))
    return lines


def _counted(row: Row) -> Count:
    places = (tuple(places.items()) for places in (row.insert, row.replace))
    return _count_of(published.BUILDERS[row.backbone], row.width, *places)


_Places = tuple[tuple[int, int], ...]


@functools.cache  # the tables have most models several times
def _count_of(builder: str, width: float, insert: _Places, replace: _Places) -> Count:
    with torch.device("meta"):
        return count(getattr(models, builder)(width, insert=dict(insert), replace=dict(replace)), 3, 224, 224)


def attention_modules() -> list[Module]:
    with torch.device("meta"):
        return [
            Module(name, count(build(CHANNELS), CHANNELS, SIDE, SIDE), options)
            for name, (build, options) in MODULES.items()
        ]


def paper_text(lines: list[Compared]) -> str:
    """One line for each of the paper's, theirs / ours."""
    table = [["model", "data set", "ULSAM", "weights, M", "difference", "MACs, M", "difference", "agrees"]]
    for line in lines:
        table.append(
            [_name(line.row), line.row.dataset, placement(line.row), *_cells(line), "yes" if line.agrees else "NO"]
        )
    return "\n".join([*aligned(table), "", *_legend(lines)])


def paper_markdown(lines: list[Compared]) -> str:
    """The same; data sets and numbers of subspaces with equal figures share a line."""
    groups: dict[tuple[str, ...], list[Compared]] = {}
    for line in lines:
        groups.setdefault((_name(line.row), _layers(line.row), *_cells(line)), []).append(line)
    table = [["", "ULSAM", "subspaces", "weights, M", "difference", "MACs, M", "difference"]]
    for (name, layers, *cells), group in sorted(groups.items(), key=lambda item: _order(item[1][0].row)):
        splits = {g for line in group for g in (line.row.insert | line.row.replace).values()}
        cells[3] += "" if all(line.agrees for line in group) else " ✗"
        table.append([name, layers, ", ".join(map(str, sorted(splits))) or "–", *cells])
    return "\n".join([*piped(table), "", *_legend(lines, width=120)]) + "\n"


def modules_text(modules: list[Module], markdown: bool = False) -> str:
    table = [["module", "weights", "MACs, M", "built with"]]
    for module in modules:
        table.append([module.name, f"{module.cost.weights:,}", f"{module.cost.macs / 1e6:.2f}", module.options])
    legend = textwrap.wrap(
        f"At {CHANNELS}x{SIDE}x{SIDE}. {RULES} Pooling, softmax, activations and reweighting are not counted, for any "
        "of them. The paper prints 1.0 k parameters and 0.2 M for ULSAM.",
        80,
        break_on_hyphens=False,
    )
    return "\n".join([*(piped if markdown else aligned)(table), "", *legend])


def placement(row: Row) -> str:
    """As the command line takes it."""
    words = [f"insert {k}={g}" for k, g in row.insert.items()]
    if row.replace:
        words.append("replace " + " ".join(f"{k}={g}" for k, g in row.replace.items()))
    return ", ".join(words) or "-"


def _order(row: Row) -> tuple[str, float, bool]:
    return row.backbone, -row.width, bool(row.replace)


def _layers(row: Row) -> str:
    if row.insert:
        return "after layer " + ", ".join(map(str, row.insert))
    return "in place of " + ", ".join(map(str, row.replace)) if row.replace else "–"


def _name(row: Row) -> str:
    return row.backbone + ("" if row.width == 1 else f" ×{row.width:g}")


def _cells(line: Compared) -> list[str]:
    cells = []
    for figure, digits in ((line.weights, 4), (line.macs, 2)):
        cells.append(f"{figure.published} / {figure.ours:.{digits}f}")
        if figure.published_difference is None or figure.our_difference is None:
            cells.append("–")
        else:
            cells.append(f"{_signed(figure.published_difference)} / {_signed(figure.our_difference, digits)}")
    return cells


def _signed(number: Decimal, digits: int | None = None) -> str:
    text = f"{number:+f}" if digits is None else f"{number:+.{digits}f}"
    return text.replace("-", "−")


def _legend(lines: list[Compared], width: int = 80) -> list[str]:
    off = [line for line in lines if not line.agrees]
    notes = [
        f"Published / counted here, in millions, at 224x224. {RULES} {len(lines) - len(off)} of {len(lines)} published "
        "lines agree within one unit of the last printed digit: unchanged models by their figures, the others by the "
        "difference from the unchanged model, since the authors subtract from the rounded 300 M and 3.4 M. "
        "Of layers that count the same, one is named.",
    ]
    for line in off:
        row = line.row
        notes.append(f"✗ {_name(row)}, {row.dataset}, {row.variant}, {row.macs} M: {row.note or 'no reason is known'}.")
    return [text for note in notes for text in [*textwrap.wrap(note, width, break_on_hyphens=False), ""]][:-1]
