"""What `bench` compares its providers on."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..console import devices
from .cases import LAYOUTS
from .directions import DIRECTIONS


@dataclass(frozen=True)
class Setting:
    """What the providers are compared on."""

    case: str
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
        return DIRECTIONS[self.direction].passes * n * c * h * w * devices.DTYPES[self.dtype].itemsize

    @property
    def training(self) -> bool:
        """Whether gradients are taken, and the authors' norms use the batch's statistics."""
        return self.direction != "forward"

    def __str__(self) -> str:
        return f"{self.case} {self.direction} {self.dtype} {self.layout}"

    def tensor(self, batch: int | None = None) -> Tensor:
        """Normally distributed numbers of x's shape."""
        n, *rest, _ = self.shape
        x = torch.randn((batch or n, *rest), device=self.device).to(devices.DTYPES[self.dtype])
        return x.contiguous(memory_format=LAYOUTS[self.layout])
