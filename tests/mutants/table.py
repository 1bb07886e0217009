"""Reads table.txt."""

from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake in one file."""

    name: str
    file: str
    old: str  # stands once in the file
    new: str
    tests: tuple[str, ...]  # arguments of pytest
    lives: str = ""  # why no test can notice it, where that is so

    def __str__(self) -> str:
        place = f"{self.file}: {self.name}" if self.old else f"{self.name}: {self.tests[0]}"
        return f"{place}   {self.lives}".rstrip()

    def plant(self, source: str) -> str:
        """The source with the mistake."""
        assert source.count(self.old) == 1, f"{self.name}: this must stand once in {self.file}: {self.old}"
        return source.replace(self.old, self.new)


def read() -> list[Mutant]:
    """All mutants, in the order of the table."""
    found: list[Mutant] = []
    for block in (Path(__file__).parent / "table.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        head, _, tests = lines[0].partition(" | ")
        if head.startswith("file "):
            file, usual = head.removeprefix("file "), tuple(tests.split())
            continue
        old, new, lives = (
            "\n".join(line[len(mark) :] for line in lines[1:] if line.startswith(mark.strip()))
            for mark in ("- ", "+ ", "lives: ")
        )
        found.append(Mutant(head, file, old, new, tuple(tests.split()) or usual, lives))
    return found
