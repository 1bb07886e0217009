"""Images that are missing or cannot be read: they are counted and named, and too many of them are an error."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from ..console import files
from ..console.errors import UserError
from .dataset_folders import Data, Images
from .processes import Processes


class Failure(NamedTuple):
    """An image that could not be read."""

    number: int  # in its set
    reason: str


class Broken:
    """{number: reason} of each set, as this process has met them, or after `merge` as all processes have.

    Args:
        highest_share: how much of a set may be unreadable, 0 to 1.
    """

    def __init__(self, data: Data, highest_share: float) -> None:
        self.sets: dict[str, Images] = {"train": data.train, "val": data.val}
        self.highest_share = highest_share
        self.found: dict[str, dict[int, str]] = {"train": {}, "val": {}}

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    def add(self, which: str, failures: Sequence[Failure]) -> None:
        """Note what this process has met."""
        self.found[which] |= dict(failures)

    def merge(self, processes: Processes) -> None:
        """Give every process what all have met."""
        for found in processes.gather(self.found):
            for which in self.found:
                self.found[which] |= found[which]

    def lines(self) -> list[str]:
        """Path and reason of each."""
        return [
            f"{self.sets[which].path(number)}: {found[number]}"
            for which, found in self.found.items()
            for number in sorted(found)
        ]

    def write(self, path: pathlib.Path) -> None:
        """Write the lines to a file."""
        files.write_text(path, "".join(line + "\n" for line in self.lines()))

    def check(self) -> None:
        """Raises UserError if they are too many."""
        problem = self.problem()
        if problem is not None:
            raise UserError(problem)

    def problem(self) -> str | None:
        """That they are too many; None where they are not."""
        for which, found in self.found.items():
            images = self.sets[which]
            if len(found) > self.highest_share * len(images):
                number = min(found)
                return (
                    f"{len(found)} of {len(images)} images for {which} are missing or broken, more than --max-broken "
                    f"{self.highest_share:g} allows; the first is {images.path(number)}: {found[number]}"
                )
        return None
