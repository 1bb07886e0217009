"""From an image to a view of it: uint8 [3, size, size]. By Pillow, or by torchvision's transforms if asked for.

Both readers open files with Pillow, as torchvision's ImageFolder does, and resize bilinearly. Their test views are the
same bits. Pillow is the default because the torchvision of the package index cannot be imported beside a CPU build of
PyTorch.
"""

import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..console import images
from ..console.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area and aspect ratio of a training crop; source: Szegedy et al., CVPR 2015, and torchvision."""

MOST_SCALED = 2**24
"""Pixels of a scaled image. Of a longer one the middle alone is scaled, which rounds in another way."""

View = Callable[["Picture"], Tensor]
"""From an image in RGB to uint8 [3, size, size]."""


def require(reader: str) -> str:
    """The reader's name and version, for the head of a report.

    Raises:
        UserError: it cannot be imported. torchvision raises RuntimeError beside another build of PyTorch.
    """
    found = []
    for name in dict.fromkeys(("PIL", "torchvision" if reader == "torchvision" else "PIL")):
        try:
            found.append(importlib.import_module(name))
        except (ImportError, RuntimeError) as error:
            advice = "--reader pillow does without it" if name == "torchvision" else "pip install pillow"
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"--reader {reader}: {name} cannot be imported ({reason}); {advice}") from None
    return f"{reader} {getattr(found[-1], '__version__', '')}".strip()


def training_view(reader: str, size: int, seed: int) -> View:
    """A random crop, mirrored or not; the same one for the same seed."""
    if reader == "torchvision":
        return lambda image: _by_torchvision(image, size, seed)
    return lambda image: _random_crop(image, size, torch.Generator().manual_seed(seed))


def centre_view(resize: int, size: int) -> View:
    """The middle of the image, after its shorter side was scaled to `resize`; the same for both readers."""
    return lambda image: _pixels(_centre_crop(image, resize, size))


def _random_crop(image: "Picture", size: int, generator: torch.Generator) -> Tensor:
    from PIL import Image

    box = crop_box(image.width, image.height, generator)
    view = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    if torch.rand((), generator=generator) < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _pixels(view)


def crop_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of a crop whose area and ratio are drawn from SCALE and RATIO.

    After ten draws that do not fit: the largest crop in the middle of a ratio within RATIO.
    """
    (smallest, largest), (narrowest, widest) = SCALE, RATIO
    for _ in range(10):
        share, stretch, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (smallest + share * (largest - smallest))
        ratio = math.exp(math.log(narrowest) + stretch * (math.log(widest) - math.log(narrowest)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, upper, left + w, upper + h
    w, h = max(min(width, round(height * widest)), 1), max(min(height, round(width / narrowest)), 1)
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _centre_crop(image: "Picture", resize: int, size: int) -> "Picture":
    from PIL import Image

    short = min(image.size)
    width, height = (resize if side == short else int(resize * side / short) for side in image.size)
    if width * height > MOST_SCALED:
        return images.middle(image, resize, size)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, upper, left + size, upper + size))


def _by_torchvision(image: "Picture", size: int, seed: int) -> Tensor:
    from torchvision import transforms

    view = transforms.Compose([transforms.RandomResizedCrop(size, SCALE, RATIO), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _pixels(view(image))


def _pixels(image: "Picture") -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()
