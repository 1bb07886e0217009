"""Images that are missing or cannot be read: counted, named, and too many of them refused."""

import pathlib

from ..console.errors import UserError
from .dataset_folders import Data, Images
from .processes import Processes


class Broken:
    """{number: reason} of both sets, as this process has met them, or as all have after `merge`."""

    def __init__(self, data: Data, highest_share: float) -> None:
        self.sets: dict[str, Images] = {"train": data.train, "val": data.val}
        self.highest_share = highest_share
        self.found: dict[str, dict[int, str]] = {"train": {}, "val": {}}

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    def add(self, which: str, images: list[tuple[int, str]]) -> None:
        """Raises UserError where they have become too many."""
        if images:
            self.found[which] |= dict(images)
            self._check(which)

    def merge(self, processes: Processes) -> None:
        """Let every process know what all have met."""
        for found in processes.gather(self.found):
            for which in self.found:
                self.found[which] |= found[which]
        for which in self.found:
            self._check(which)

    def lines(self) -> list[str]:
        return [
            f"{self.sets[which].root / self.sets[which].names[number]}: {found[number]}"
            for which, found in self.found.items()
            for number in sorted(found)
        ]

    def write(self, path: pathlib.Path) -> None:
        path.write_text("".join(line + "\n" for line in self.lines()), encoding="utf-8")

    def _check(self, which: str) -> None:
        found, images = self.found[which], self.sets[which]
        if len(found) > self.highest_share * len(images):
            number = min(found)
            raise UserError(
                f"{len(found)} of {len(images)} images for {which} are missing or broken, more than --max-broken "
                f"{self.highest_share:g} allows; the first is {images.root / images.names[number]}: {found[number]}"
            )
