"""Tables of text: what the package needs of `tabulate`, which would be a dependency for these few lines."""

from collections.abc import Sequence

Table = Sequence[Sequence[str]]  # lines of cells, as many in each


def aligned(table: Table, left: int | None = None, gap: int = 2) -> list[str]:
    """Columns `gap` blanks apart; the first `left` of them to the left, the others to the right; None: all left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pads = [str.ljust if left is None or i < left else str.rjust for i in range(len(widths))]
    lines = [[pad(cell, w) for pad, cell, w in zip(pads, row, widths, strict=True)] for row in table]
    return [(" " * gap).join(cells).rstrip() for cells in lines]


def piped(table: Table) -> list[str]:
    """As Markdown; the first line is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return [lines[0], "|" + "---|" * len(table[0]), *lines[1:]]
