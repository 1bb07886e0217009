"""Images as a torch Dataset, in batches that depend on seed, epoch and step alone."""

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import seeds
from . import transforms as reader
from .dataset_folders import Images

ATTEMPTS = 100
"""How many images in a row may be unreadable; then the place stays empty, and the batch is too small."""


class Batch(NamedTuple):
    """Images uint8 [n, 3, S, S], labels int64 [n], and what could not be read: (number, reason) each."""

    images: Tensor
    labels: Tensor
    broken: list[tuple[int, str]]


class Views(Dataset[tuple[Tensor | None, int, list[tuple[int, str]]]]):
    """Views of images by (epoch, number), with labels. An unreadable image is reported with the view in its place.

    That is a view of the next readable image in training, and None in a test.
    """

    def __init__(self, images: Images, reader_name: str, size: int, resize: int, seed: int, training: bool) -> None:
        self.images, self.reader, self.size, self.resize = images, reader_name, size, resize
        self.seed, self.training = seed, training

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor | None, int, list[tuple[int, str]]]:
        epoch, first = place
        broken: list[tuple[int, str]] = []
        for number in range(first, first + (min(ATTEMPTS, len(self)) if self.training else 1)):
            number %= len(self)
            try:
                image = reader.opened(self.images.root / self.images.names[number])
            except reader.Unreadable as error:
                broken.append((number, str(error)))
                continue
            # the seed is the place's: it stays as it is where another image fills in
            return self._view(epoch, first)(image), self.images.labels[number], broken
        return None, 0, broken

    def _view(self, epoch: int, number: int) -> reader.View:
        if not self.training:
            return reader.centre_view(self.resize, self.size)
        return reader.training_view(self.reader, self.size, seeds.derive(self.seed, "view", epoch, number))

    def collate(self, items: list[tuple[Tensor | None, int, list[tuple[int, str]]]]) -> Batch:
        views = [view for view, _, _ in items if view is not None]
        labels = [label for view, label, _ in items if view is not None]
        images = torch.stack(views) if views else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return Batch(images, torch.tensor(labels, dtype=torch.int64), [one for _, _, some in items for one in some])


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """The batches of one process in one epoch, from step `start` on.

    The order is drawn anew for every epoch. Step s of all processes together takes the next batch_size * world images,
    process r the r-th part of those; what is left at the end is left out. So it is the same images in one process
    with batches as large as those of several together.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        epoch: int,
        steps: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, epoch
        self.steps, self.start, self.rank, self.world = steps, start, rank, world

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seeds.derive(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator)
        for step in range(self.start, self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            yield [(self.epoch, number) for number in order[first : first + self.batch_size].tolist()]


class EveryImage(Sampler[list[tuple[int, int]]]):
    """Every image once over all processes: process r takes the images r, r + world, …"""

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1, limit: int | None = None) -> None:
        self.numbers = range(rank, length, world)
        self.batch_size, self.limit = batch_size, limit

    def __len__(self) -> int:
        batches = -(-len(self.numbers) // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(len(self)):
            yield [(0, n) for n in self.numbers[batch * self.batch_size : (batch + 1) * self.batch_size]]


def loader(views: Views, order: Sampler[Any], workers: int, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        views, batch_sampler=order, num_workers=workers, collate_fn=views.collate, pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # the loader draws a seed for its workers, which must not be of the training's
    )  # fmt: skip


def _start_worker(number: int) -> None:
    # a cluster's manager signals every process of a job: the step under way still needs its images
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
