"""The figures that the paper's authors published (published.csv), and how ours compare with them.

They are of the authors' slides and poster of WACV 2020. The columns insert and replace are the placements, found by
counting; of layers that count the same, 13 and 14 for one, one was taken. The authors subtract from their rounded
300 M and 3.4 M where the counts are 300.774 M and 3.470 M, so a changed model is compared by its difference from
vanilla, and a vanilla one by its figure. They count a classifier of 1000 classes on every data set.
"""

import csv
import importlib.resources
from dataclasses import dataclass
from decimal import Decimal

from .counting import Count

MODULE = {"name": "ULSAM", "params_M": "0.001", "macs_M": "0.2"}
"""Slide p6: ULSAM alone, 512 channels of 14x14, any number of subspaces."""

BUILDERS = {"MobileNet-V1": "mobilenet_v1", "MobileNet-V2": "mobilenet_v2"}


@dataclass(frozen=True)
class Row:
    """One line of published.csv; figures are in millions, as printed."""

    source: str
    backbone: str
    width: float
    dataset: str
    variant: str
    params: Decimal
    macs: Decimal
    insert: dict[int, int]
    replace: dict[int, int]
    note: str

    @property
    def vanilla(self) -> bool:
        return not self.insert and not self.replace


@dataclass(frozen=True)
class Figure:
    """A published number beside ours, in millions; differences are from vanilla, and None for vanilla itself."""

    published: Decimal
    ours: Decimal
    published_difference: Decimal | None
    our_difference: Decimal | None

    @property
    def agrees(self) -> bool:
        """Within one unit of the last printed digit: the authors truncate here and round there."""
        unit = Decimal(1).scaleb(int(self.published.as_tuple().exponent))
        if self.published_difference is None or self.our_difference is None:
            return abs(self.published - self.ours) <= unit
        return abs(self.published_difference - self.our_difference) <= unit


def rows() -> list[Row]:
    """All models of published.csv, in its order."""
    text = importlib.resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return [
        Row(
            line["source"], line["backbone"], float(line["width"]), line["dataset"], line["variant"],
            Decimal(line["params_M"]), Decimal(line["macs_M"]),
            _places(line["insert"]), _places(line["replace"]), line["note"],
        )
        for line in csv.DictReader(text.splitlines())
    ]  # fmt: skip


def vanilla_of(row: Row, every: list[Row]) -> Row:
    """The unchanged model of the same backbone and width."""
    key = (row.backbone, row.width)
    return next(other for other in every if other.vanilla and (other.backbone, other.width) == key)


def compare(row: Row, ours: Count, vanilla: Row, our_vanilla: Count) -> tuple[Figure, Figure]:
    """Weights and multiply-accumulates."""
    return (
        _figure(row, row.params, ours.weights, vanilla.params, our_vanilla.weights),
        _figure(row, row.macs, ours.macs, vanilla.macs, our_vanilla.macs),
    )


def _figure(row: Row, published: Decimal, ours: int, vanilla: Decimal, our_vanilla: int) -> Figure:
    millions = Decimal(ours).scaleb(-6)
    if row.vanilla:
        return Figure(published, millions, None, None)
    return Figure(published, millions, published - vanilla, Decimal(ours - our_vanilla).scaleb(-6))


def _places(text: str) -> dict[int, int]:
    return {int(layer): int(g) for layer, _, g in (word.partition("=") for word in text.split())}
