"""Attention maps over a picture, in one figure. Needs matplotlib, the extra `plot`."""

import math
import pathlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import files


class Panel(NamedTuple):
    """A map [h, w] that covers the whole picture, in 0..1, and what stands above it."""

    title: str
    strength: Tensor


def peak(a: Tensor) -> float:
    """The largest value of a map [h, w], times h * w: 1 for a uniform map."""
    return float(a.max()) * a.numel()


def entropy(a: Tensor) -> float:
    """Entropy of a map in nats; log(h * w) for a uniform one."""
    return -float(torch.special.xlogy(a.double(), a.double()).sum())


def enlarged(strength: Tensor, height: int, width: int) -> Tensor:
    """A map [h, w] at the size of the picture: the corners of both coincide."""
    return F.interpolate(strength[None, None], (height, width), mode="bilinear")[0, 0]


def draw(picture: Tensor, panels: list[Panel], headline: str, output: pathlib.Path) -> None:
    """The picture [3, H, W] in 0..1, and each map over it, as one PNG."""
    from matplotlib.figure import Figure

    lines = math.ceil((len(panels) + 1) / 5)
    columns = math.ceil((len(panels) + 1) / lines)
    width = 2.6  # inches of a panel
    height = width * picture.shape[1] / picture.shape[2] + 0.4
    figure = Figure(figsize=(columns * width, lines * height + 0.3), layout="constrained", dpi=150)
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(picture.permute(1, 2, 0).numpy())
    axes[0].set_title("picture", fontsize=8)
    grey = 0.55 * picture.mean(0).numpy()
    for axis, panel in zip(axes[1:], panels, strict=False):  # the last line may be longer than what is left
        strength = enlarged(panel.strength, *picture.shape[1:]).numpy()
        axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
        axis.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=strength**0.5 * 0.9)
        axis.set_title(panel.title, fontsize=7)
    # a file's name in it may hold dollars, which are no mathematics, and bytes that are no text
    printable = headline.encode("utf-8", "backslashreplace").decode("utf-8")
    figure.suptitle(printable, fontsize=8, parse_math=False)
    files.replace(output, lambda file: figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.08))
