"""Pictures as tensors [3, H, W] in 0..1. Needs Pillow, which matplotlib brings."""

import pathlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import UserError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SHORTER, CROP = 256, 224
"""A network trained on ImageNet sees the middle CROP x CROP of a picture whose shorter side is SHORTER."""

MOST_PIXELS = 178_956_970
"""Of a picture; half a gigabyte in RGB. Pillow's bound, which programs may lift."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, in red, green and blue. Source: torchvision's references/classification."""


def demo() -> pathlib.Path:
    """A photograph that matplotlib carries."""
    from matplotlib import cbook

    return pathlib.Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


class Unreadable(Exception):
    """The picture is missing or broken; the message says what is wrong."""


def decoded(path: pathlib.Path, upright: bool = False) -> "Picture":
    """The picture in RGB; turned as its Exif data says where `upright`.

    Raises:
        Unreadable: no such file, no whole picture, or one of more than MOST_PIXELS.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"has {file.width} x {file.height} pixels, more than {MOST_PIXELS:,}")
            return in_rgb(ImageOps.exif_transpose(file) if upright else file, file.format)
    except FileNotFoundError:
        raise Unreadable("missing") from None
    except Exception as error:  # a decoder raises what it likes, by format and by where the file is damaged
        raise Unreadable(one_line(error).replace(str(path), path.name)) from None


def in_rgb(image: "Picture", kind: str | None) -> "Picture":
    """8 bits a channel. Pillow would clip brighter greys to white; here they are scaled.

    16 bits are scaled by their range. Whole numbers and floats have none, so that is 0 to 1 (floats), 0 to 255 or 0 to
    65535, the first that holds every pixel; else it reaches from the darkest to the brightest pixel. kind: of file.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image.convert("RGB")
    import numpy
    from PIL import Image

    values = numpy.asarray(image).astype(numpy.float64)
    finite = numpy.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    ranges: tuple[float, ...] = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    if image.mode.startswith("I;") or kind in ("PNG", "PPM"):  # mode I too has 16 bits in these
        ranges = (65535.0,)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    start, span = (0.0, top) if top is not None else (low, high - low or 1.0)
    scaled = numpy.where(finite, values - start, 0) * (255 / span)
    return Image.fromarray(scaled.round().clip(0, 255).astype(numpy.uint8)).convert("RGB")


def opened(path: pathlib.Path) -> "Picture":
    """The picture in RGB, upright. Raises UserError: no such file, or no picture."""
    try:
        return decoded(path, upright=True)
    except Unreadable as error:
        what = str(error)
    if what == "missing":
        raise UserError(f"{path}: no such file")
    if what.startswith("UnidentifiedImageError"):
        raise UserError(f"{path}: not a picture that Pillow can read")
    raise UserError(f"{path}: cannot be read: {what}")


def middle(image: "Picture", shorter: int, side: int) -> "Picture":
    """The middle side x side of a picture that is scaled bilinearly so that its shorter side is `shorter`.

    Only the crop is scaled: all of a picture one pixel high would be too wide for memory.
    """
    from PIL import Image

    width, height = (length * shorter // min(image.size) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + side) * x, (top + side) * y)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def pixels(image: "Picture") -> Tensor:
    import numpy

    values = numpy.asarray(image, dtype=numpy.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def centre(path: pathlib.Path) -> Tensor:
    """The middle [3, CROP, CROP] of a picture whose shorter side is SHORTER."""
    return pixels(middle(opened(path), SHORTER, CROP))


def normalised(picture: Tensor) -> Tensor:
    """As a network trained on ImageNet takes it."""
    mean, std = (picture.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (picture - mean) / std
