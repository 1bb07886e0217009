"""The figures that the paper's authors published (published.csv), and how our counts compare with them.

The figures come from the authors' slides and poster of WACV 2020. The columns insert and replace say where the ULSAMs
stand, which we found by counting; where several layers give the same count, such as 13 and 14, we took one of them.
The authors subtract from rounded figures, 300 M and 3.4 M, while the counts are 300.774 M and 3.470 M. So we compare
the figures of vanilla models themselves, and of all others their difference from vanilla. The authors count a
classifier of 1000 classes on every data set.
"""

import csv
import importlib.resources
from dataclasses import dataclass
from decimal import Decimal

from .counting import Count

MODULE = {"name": "ULSAM", "params_M": "0.001", "macs_M": "0.2"}
"""ULSAM alone on 512 channels of 14x14 with any number of subspaces; source: slide p6."""

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
    """A published number beside ours, in millions. Differences are from vanilla; None for vanilla itself."""

    published: Decimal
    ours: Decimal
    published_difference: Decimal | None
    our_difference: Decimal | None

    @property
    def agrees(self) -> bool:
        """Whether they differ by at most one unit of the last printed digit: the authors sometimes truncate."""
        unit = Decimal(1).scaleb(int(self.published.as_tuple().exponent))
        if self.published_difference is None or self.our_difference is None:
            return abs(self.published - self.ours) <= unit
        return abs(self.published_difference - self.our_difference) <= unit


def rows() -> list[Row]:
    """All rows of published.csv, in its order."""
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
    """The figures of weights and of multiply-accumulates."""
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
