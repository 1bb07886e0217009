"""`ulsam-fused attend IMAGE`: the attention maps of an untrained layer, drawn over the picture."""

import argparse
import math
import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..modules import ULSAM
from . import devices, plot, stem
from .errors import UserError, check_output

SPREAD = 1.3
"""Standard deviation that the logits of each map are given; the map is then peaked, and can be seen."""

_DESCRIPTION = """\
Runs a picture through a fixed bank of filters (edges, spots, colours: nothing is learned) and one ULSAM layer, and
draws the layer's attention maps over the picture. The layer is untrained: its weights are random and positive, and
scaled so that the logits of each map have standard deviation 1.3; maps with initial weights would be nearly uniform.
So the picture shows how subspaces differ in what they look at, not what a trained network has learned.
"""
_EPILOG = """\
examples:
  ulsam-fused attend photo.jpg
  ulsam-fused attend photo.jpg --num-splits 8 --size 384 -o maps.png
  ulsam-fused attend --demo          a photograph that matplotlib carries

Needs matplotlib: pip install 'ulsam_fused[plot]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("image", nargs="?", type=pathlib.Path, metavar="IMAGE", help="a picture that Pillow can read")
    parser.add_argument("--demo", action="store_true", help="take matplotlib's photograph of Grace Hopper instead")
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, metavar="FILE.png", help="default: IMAGE's name + -attention.png"
    )
    parser.add_argument("--num-splits", type=int, default=4, metavar="G", help=f"divides {stem.CHANNELS} (default: 4)")
    parser.add_argument(
        "--size", type=int, default=320, metavar="PX", help="longer side for the filters (default: 320)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the layer's weights (default: 0)")
    parser.add_argument("--backend", choices=backends.BACKENDS, default="auto")
    devices.add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    if (args.image is None) != args.demo:
        raise UserError("give the name of a picture, or --demo" + (", not both" if args.demo else ""))
    if args.num_splits < 1 or stem.CHANNELS % args.num_splits:
        raise UserError(
            f"--num-splits must divide the {stem.CHANNELS} channels of the filter bank, got {args.num_splits}"
        )
    if not 32 <= args.size <= 4096:
        raise UserError(f"--size must be from 32 to 4096, got {args.size}")
    output = args.output or pathlib.Path(f"{'demo' if args.demo else args.image.stem}-attention.png")
    plot.require(output)
    check_output(output)
    device = devices.pick(args.device)
    picture = read(demo_picture() if args.demo else args.image, args.size)
    try:
        backend = backends.resolve(args.backend, device)
        maps = attend(picture.to(device), args.num_splits, args.seed, backend).cpu()
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    figures = [(peak(a), entropy(a)) for a in maps]
    _print(picture, maps, figures, backend, device)
    draw(picture, maps, figures, args.seed, output)
    print(output.resolve())
    return 0


def demo_picture() -> pathlib.Path:
    from matplotlib import cbook

    return pathlib.Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def read(path: pathlib.Path, size: int) -> Tensor:
    """The picture as [3, H, W] in 0..1, upright, its longer side `size`, both sides multiples of the stem's stride."""
    import numpy
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    scale = size / max(image.size)
    width, height = (max(4, round(side * scale / stem.STRIDE)) * stem.STRIDE for side in image.size)
    pixels = numpy.asarray(image.resize((width, height), Image.Resampling.LANCZOS), dtype=numpy.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def attend(picture: Tensor, num_splits: int, seed: int, backend: str) -> Tensor:
    """The maps A [num_splits, h, w] of an untrained layer over the stem's features.

    Weights are uniform in (0.5, 1.5) from the seed: positive, so that a map rises where its filters respond. Each
    subspace's pointwise weights are then scaled to give its logits the standard deviation SPREAD.
    """
    x = stem.features(picture)
    layer = ULSAM(stem.CHANNELS, num_splits, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (layer.dw_weight, layer.pw_weight):
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
        layer.pw_weight.div_(stem.CHANNELS)  # logits of order 1: the logarithm below meets no underflow
        layer.to(x.device)
        logits = layer.attention(x).double().log()  # up to a constant for each map
        spread = logits.std((2, 3)).flatten().clamp_min(1e-6).float()
        layer.pw_weight.mul_((SPREAD / spread).repeat_interleave(stem.CHANNELS // num_splits))
        attention: Tensor = layer.attention(x)[0]
    return attention


def peak(a: Tensor) -> float:
    """The largest value of a map [h, w], times h * w: 1 for a uniform map."""
    return float(a.max()) * a.numel()


def entropy(a: Tensor) -> float:
    """Entropy of a map in nats; log(h * w) for a uniform one."""
    return -float(torch.special.xlogy(a.double(), a.double()).sum())


def _print(
    picture: Tensor, maps: Tensor, figures: list[tuple[float, float]], backend: str, device: torch.device
) -> None:
    g, h, w = maps.shape
    print(f"picture {picture.shape[2]} x {picture.shape[1]}, {g} maps of {w} x {h}, backend {backend} on {device}")
    print(f"untrained: fixed filters, random weights. A uniform map has max*H*W 1 and entropy {math.log(h * w):.2f}")
    print(f"{'subspace':>8} {'max*H*W':>9} {'entropy':>8}  channels respond to")
    for k, (top, nats) in enumerate(figures):
        print(f"{k:>8} {top:>9.1f} {nats:>8.2f}  {stem.families_of(k, g)}")


def draw(picture: Tensor, maps: Tensor, figures: list[tuple[float, float]], seed: int, output: pathlib.Path) -> None:
    """The picture, and the maps over it, each on its own scale from 0 to its maximum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    g, h, w = maps.shape
    lines = math.ceil((g + 1) / 5)
    columns = math.ceil((g + 1) / lines)
    width = 2.6  # inches of a panel
    height = width * picture.shape[1] / picture.shape[2] + 0.4
    figure = Figure(figsize=(columns * width, lines * height + 0.3), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.set_axis_off()
    colours = picture.permute(1, 2, 0).numpy()
    axes[0].imshow(colours)
    axes[0].set_title("picture", fontsize=8)
    grey = 0.55 * picture.mean(0).numpy()
    for k in range(g):
        shown = F.interpolate((maps[k] / maps[k].max())[None, None], picture.shape[1:], mode="bilinear")[0, 0]
        _overlay(axes[k + 1], grey, shown.numpy())
        top, nats = figures[k]
        title = f"{k}: {stem.families_of(k, g)}\nmax·HW {top:.0f}, entropy {nats:.1f} of {math.log(h * w):.1f}"
        axes[k + 1].set_title(title, fontsize=7)
    figure.suptitle(
        f"ULSAM attention, {g} subspace{'s' if g > 1 else ''}: UNTRAINED, fixed filters, random weights (seed {seed}); "
        "each map on its own scale",
        fontsize=8,
    )
    figure.savefig(output, bbox_inches="tight", pad_inches=0.08)


def _overlay(axis: Any, grey: Any, strength: Any) -> None:
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
    axis.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=strength**0.5 * 0.9)
