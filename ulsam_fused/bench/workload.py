"""What `bench` compares its providers on."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..console.devices import DTYPES
from ..console.errors import UserError
from .cases import LAYOUTS
from .directions import DIRECTIONS, NAMED


@dataclass(frozen=True)
class Workload:
    """One size in one direction, type and memory format."""

    case: str  # NxCxHxW/gK, K subspaces
    direction: str
    dtype: str
    layout: str
    device: torch.device
    form: str | None = None  # only the providers of this form

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        n, c, h, w, g = (int(number) for number in re.findall(r"\d+", self.case))
        return n, c, h, w, g

    @property
    def floor(self) -> int:
        """The fewest bytes that the work can move."""
        n, c, h, w, _ = self.shape
        return DIRECTIONS[self.direction].passes * n * c * h * w * DTYPES[self.dtype].itemsize

    @property
    def num_splits(self) -> int:
        return self.shape[4]

    @property
    def training(self) -> bool:
        """Whether gradients are taken; the authors' norms then use the batch's statistics."""
        return self.direction != "forward"

    def __str__(self) -> str:
        return f"{self.case} {self.direction} {self.dtype} {self.layout}"

    def tensor(self, batch: int | None = None) -> Tensor:
        """Normally distributed numbers of x's shape."""
        n, *rest, _ = self.shape
        x = torch.randn((batch or n, *rest), device=self.device).to(DTYPES[self.dtype])
        return x.contiguous(memory_format=LAYOUTS[self.layout])


def check_case(case: str) -> None:
    """Raises UserError unless the text is NxCxHxW/gK of positive numbers with K dividing C."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)x([1-9]\d*)/g([1-9]\d*)", case)
    if match is None:
        names = " or ".join(NAMED)
        raise UserError(f"--case must look like 8x512x14x14/g4 (N x C x H x W / subspaces) or be {names}, got {case!r}")
    channels, num_splits = int(match[2]), int(match[5])
    if channels % num_splits:
        raise UserError(f"--case {case}: {channels} channels cannot be cut into {num_splits} equal subspaces")
