"""Images as a torch Dataset. The batches depend on seed, epoch and step alone."""

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..console import images
from . import seeds, transforms
from .dataset_folders import Images
from .processes import SIGNALS
from .unreadable import Failure

ATTEMPTS = 100
"""So many unreadable images in a row are replaced by the next one; after that the batch stays too small."""


class Place(NamedTuple):
    """Which view is meant."""

    epoch: int
    number: int  # of the image


class Item(NamedTuple):
    """What was read for one place."""

    view: Tensor | None  # uint8 [3, S, S]; None: nothing was readable
    label: int
    broken: list[Failure]  # met on the way


class Batch(NamedTuple):
    images: Tensor  # uint8 [n, 3, S, S]
    labels: Tensor  # int64 [n]
    broken: list[Failure]


class Views(Dataset[Item]):
    """Views of images, with labels.

    In training the next readable image takes the place of an unreadable one. In a test the view is None then.

    Args:
        reader: "pillow" or "torchvision".
        size: side of a view in pixels, S.
        resize: a test image's shorter side before it is cropped, in pixels.
    """

    def __init__(self, images: Images, reader: str, size: int, resize: int, seed: int, training: bool) -> None:
        self.images, self.reader, self.size, self.resize = images, reader, size, resize
        self.seed, self.training = seed, training

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> Item:
        epoch, first = place
        broken: list[Failure] = []
        for number in range(first, first + (min(ATTEMPTS, len(self)) if self.training else 1)):
            number %= len(self)
            try:
                image = images.decoded(self.images.path(number))
            except images.Unreadable as error:
                broken.append(Failure(number, str(error)))
                continue
            # the seed is that of the place, whichever image fills it
            return Item(self._view(epoch, first)(image), self.images.labels[number], broken)
        return Item(None, 0, broken)

    def _view(self, epoch: int, number: int) -> transforms.View:
        if not self.training:
            return transforms.centre_view(self.resize, self.size)
        return transforms.training_view(self.reader, self.size, seeds.derive(self.seed, "view", epoch, number))

    def collate(self, items: list[Item]) -> Batch:
        """The readable views of the items as one batch."""
        views = [item.view for item in items if item.view is not None]
        labels = [item.label for item in items if item.view is not None]
        images = torch.stack(views) if views else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        broken = [failure for item in items for failure in item.broken]
        return Batch(images, torch.tensor(labels, dtype=torch.int64), broken)


@dataclass
class TrainingOrder(Sampler[list[Place]]):
    """The batches of one process in one epoch, from step `start` on.

    Each epoch has an order of its own. Step s of all processes together takes the next batch_size * world images, and
    process r the r-th part of them; a rest that fills no step is left out. So several processes see in each step the
    images that one process with larger batches sees.
    """

    length: int
    batch_size: int
    seed: int
    epoch: int
    steps: int
    start: int = 0
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        generator = torch.Generator().manual_seed(seeds.derive(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator)
        for step in range(self.start, self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            yield [Place(self.epoch, number) for number in order[first : first + self.batch_size].tolist()]


class EveryImage(Sampler[list[Place]]):
    """Every image once over all processes: process r takes the images r, r + world, …"""

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1, limit: int | None = None) -> None:
        self.numbers = range(rank, length, world)
        self.batch_size, self.limit = batch_size, limit

    def __len__(self) -> int:
        batches = -(-len(self.numbers) // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __iter__(self) -> Iterator[list[Place]]:
        for batch in range(len(self)):
            yield [Place(0, n) for n in self.numbers[batch * self.batch_size : (batch + 1) * self.batch_size]]


def loader(views: Views, order: Sampler[list[Place]], workers: int, pin: bool) -> Iterable[Batch]:
    """The batches of this order. pin: in memory that a GPU can copy from directly."""
    return DataLoader(
        views, batch_sampler=order, num_workers=workers, collate_fn=views.collate, pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # else the loader draws its workers' seed from the training's generator
    )  # fmt: skip


def _start_worker(number: int) -> None:
    # a cluster's manager or a terminal signals every process of a job, but the current step still needs its images
    for signalled in SIGNALS:
        signal.signal(signalled, signal.SIG_IGN)
