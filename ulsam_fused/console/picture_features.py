"""A fixed bank of filters that `attend` feeds to the layer, in place of a trained stem. Nothing is learned.

48 feature maps in 8 families of 6: edges of four orientations, bright and dark spots, warm and cool colours, each on 3
scales and in two kinds (the two signs of an edge, two widths of a spot, two hues). Families follow one another, so a
subspace of contiguous channels sees one kind of structure.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FAMILIES = (
    "vertical edges", "horizontal edges", "rising edges", "falling edges",
    "bright spots", "warm colours", "dark spots", "cool colours",
)  # fmt: skip
CHANNELS = 6 * len(FAMILIES)
STRIDE = 4
WAVELENGTHS = (4.0, 8.0, 16.0)  # pixels of the picture


def features(picture: Tensor) -> Tensor:
    """Filter responses [1, CHANNELS, H / STRIDE, W / STRIDE] of a picture [3, H, W] in 0..1, each of unit variance."""
    red, green, blue = picture.unbind()
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    families: dict[str, list[Tensor]] = {name: [] for name in FAMILIES}
    for wavelength in WAVELENGTHS:
        for name, angle in (("vertical", 0), ("horizontal", 90), ("rising", 45), ("falling", 135)):
            response = _filter(light, _gabor(wavelength, math.radians(angle)))
            families[f"{name} edges"] += [response.relu(), (-response).relu()]
        for sigma in (wavelength / 3, wavelength / 2):
            response = _filter(light, _centre_surround(sigma))
            families["bright spots"].append(response.relu())
            families["dark spots"].append((-response).relu())
        blob = _gaussian(wavelength / 4)
        for name, colour in (
            ("warm", red - (green + blue) / 2),
            ("warm", (red + green) / 2 - blue),
            ("cool", blue - (red + green) / 2),
            ("cool", (green + blue) / 2 - red),
        ):
            families[f"{name} colours"].append(_filter(colour, blob).relu())
    maps = torch.stack([response for name in FAMILIES for response in families[name]])
    pooled = F.avg_pool2d(maps[None], STRIDE).sqrt()  # so that the strongest edge does not drown the others
    return pooled / pooled.std((2, 3), keepdim=True).clamp_min(1e-3)  # an empty map stays empty


def families_of(subspace: int, num_splits: int) -> str:
    """What the channels of one subspace respond to."""
    size = CHANNELS // num_splits
    first, last = subspace * size // 6, ((subspace + 1) * size - 1) // 6
    return ", ".join(FAMILIES[first : last + 1]) if last - first < 2 else f"{FAMILIES[first]} … {FAMILIES[last]}"


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlation of [H, W] with an odd square kernel, the border repeated."""
    pad = kernel.shape[0] // 2
    padded = F.pad(image[None, None], (pad, pad, pad, pad), mode="replicate")
    return F.conv2d(padded, kernel[None, None])[0, 0]


def _grid(radius: int) -> tuple[Tensor, Tensor]:
    line = torch.arange(-radius, radius + 1, dtype=torch.float32)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return rows, columns


def _gaussian(sigma: float) -> Tensor:
    rows, columns = _grid(math.ceil(3 * sigma))
    kernel = torch.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _gabor(wavelength: float, angle: float) -> Tensor:
    """An odd Gabor filter, which responds to an edge across the direction `angle`; blind to a constant."""
    sigma = wavelength / 3
    rows, columns = _grid(math.ceil(3 * sigma))
    along = columns * math.cos(angle) + rows * math.sin(angle)
    kernel = torch.exp(-(rows**2 + columns**2) / (2 * sigma**2)) * torch.sin(2 * math.pi * along / wavelength)
    return kernel / kernel.abs().sum()


def _centre_surround(sigma: float) -> Tensor:
    """A narrow Gaussian minus a wide one."""
    wide = _gaussian(1.6 * sigma)
    narrow = _gaussian(sigma)
    pad = (wide.shape[0] - narrow.shape[0]) // 2
    return F.pad(narrow, (pad, pad, pad, pad)) - wide
