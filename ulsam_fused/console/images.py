"""Pictures as tensors [3, H, W] in 0..1. Needs Pillow, which matplotlib brings."""

import pathlib
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

SHORTER, CROP = 256, 224
"""A network trained on ImageNet sees the middle CROP x CROP of a picture whose shorter side is SHORTER."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, in red, green and blue. Source: torchvision's references/classification."""


def demo() -> pathlib.Path:
    """A photograph that matplotlib carries."""
    from matplotlib import cbook

    return pathlib.Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def opened(path: pathlib.Path) -> Any:
    """The picture, a PIL.Image in RGB, upright.

    Raises:
        UserError: no such file, or no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def pixels(image: Any) -> Tensor:
    import numpy

    values = numpy.asarray(image, dtype=numpy.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def centre(path: pathlib.Path) -> Tensor:
    """The middle [3, CROP, CROP] of a picture, scaled bilinearly so that its shorter side is SHORTER."""
    from PIL import Image

    image = opened(path)
    width, height = (side * SHORTER // min(image.size) for side in image.size)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    # scale the crop alone: all of a picture one pixel high would be too wide for memory
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + CROP) * x, (top + CROP) * y)
    return pixels(image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))


def normalised(picture: Tensor) -> Tensor:
    """As a network trained on ImageNet takes it."""
    mean, std = (picture.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (picture - mean) / std
