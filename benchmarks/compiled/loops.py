"""Machine code as a list of instructions, of a GPU or of a CPU, and the loops in it."""

from typing import NamedTuple


class Instruction(NamedTuple):
    address: int
    name: str  # with its suffixes, such as LDG.E.128
    operands: str


def innermost(loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of loops, each from its first instruction to the jump back, those that hold no other."""
    return [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
