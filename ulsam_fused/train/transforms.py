"""From a file to a view of it: uint8 [3, size, size]. By Pillow, or by torchvision's transforms where asked for.

Both open files by Pillow, as torchvision's ImageFolder does, and resize bilinearly. Both test views are the same bits.
"""

import importlib
import math
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..console.errors import UserError

READERS = ("pillow", "torchvision")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area and aspect ratio of a training crop; source: Szegedy et al., CVPR 2015, and torchvision."""

View = Callable[[Any], Tensor]


class Unreadable(Exception):
    """The image is missing or broken; the message says in which way."""


def require(reader: str) -> str:
    """What serves, with its version, for the head of a report.

    Raises:
        UserError: it cannot be imported. torchvision beside another build of torch installs, and raises RuntimeError.
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


def opened(path: pathlib.Path) -> Any:
    """The image as PIL.Image in RGB, fully decoded.

    Raises:
        Unreadable: no such file, or no whole image.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except FileNotFoundError:
        raise Unreadable("missing") from None
    # Pillow's decoders raise these, by where the bytes stop making sense
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), path.name)
        raise Unreadable(f"{type(error).__name__}: {(reason.splitlines() or [''])[0]}") from None


def training_view(reader: str, size: int, seed: int) -> View:
    """A random crop, mirrored or not; the same one for the same seed."""
    if reader == "torchvision":
        return lambda image: _by_torchvision(image, size, seed)
    return lambda image: _random_crop(image, size, torch.Generator().manual_seed(seed))


def centre_view(resize: int, size: int) -> View:
    """The middle of the image, whose shorter side was scaled to `resize` first; both readers do the same."""
    return lambda image: _pixels(_centre_crop(image, resize, size))


def _random_crop(image: Any, size: int, generator: torch.Generator) -> Tensor:
    from PIL import Image

    width, height = image.size
    box = crop_box(width, height, generator)
    view = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    if torch.rand((), generator=generator) < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _pixels(view)


def crop_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of a crop whose area and ratio are drawn from SCALE and RATIO."""
    for _ in range(10):
        area, stretch, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        ratio = math.exp(math.log(RATIO[0]) + stretch * (math.log(RATIO[1]) - math.log(RATIO[0])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    w, h = max(w, 1), max(h, 1)
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _centre_crop(image: Any, resize: int, size: int) -> Any:
    from PIL import Image

    short = min(image.size)
    width, height = (resize if side == short else int(resize * side / short) for side in image.size)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, upper, left + size, upper + size))


def _by_torchvision(image: Any, size: int, seed: int) -> Tensor:
    from torchvision import transforms

    view = transforms.Compose(
        [transforms.RandomResizedCrop(size, SCALE, RATIO), transforms.RandomHorizontalFlip()]
    )  # bilinear, of a PIL.Image
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _pixels(view(image))


def _pixels(image: Any) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()
