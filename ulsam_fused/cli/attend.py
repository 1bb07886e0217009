"""`ulsam-fused attend IMAGE`: attention maps drawn over the picture, of an untrained layer or of a network."""

import argparse
import math
import pathlib

import torch
from torch import Tensor

from .. import backends
from ..bench import plot
from ..console import devices
from ..console import images as pictures
from ..console import model_options as backbone
from ..console import network_maps as model_maps
from ..console import picture_features as stem
from ..console.drawing import Panel, draw, entropy, peak
from ..console.errors import UserError, check_output
from ..modules import ULSAM

SPREAD = 1.3
"""Standard deviation that the logits of each map are given; the map is then peaked, and can be seen."""

_DESCRIPTION = """\
Runs a picture through a fixed bank of filters (edges, spots, colours: nothing is learned) and one ULSAM layer, and
draws the layer's attention maps over the picture. The layer is untrained: its weights are random and positive, and
scaled so that the logits of each map have standard deviation 1.3; maps with initial weights would be nearly uniform.
So the picture shows how subspaces differ in what they look at, not what a trained network has learned.

With --model, draws the maps of every ULSAM inside that network instead, over the part of the picture that it sees:
shorter side 256, the middle 224 x 224. --checkpoint gives it weights; without, they are random.
"""
_EPILOG = """\
examples:
  ulsam-fused attend photo.jpg
  ulsam-fused attend photo.jpg --num-splits 8 --size 384 -o maps.png
  ulsam-fused attend --demo          a photograph that matplotlib carries
  ulsam-fused attend photo.jpg --model mobilenet_v2 --insert 17=4 --checkpoint trained.pth

A checkpoint is a state dict, or a dict with one under "model", as torch.save writes them; the width, the places and
the number of subspaces must be those of training. One of the backbone alone leaves the ULSAMs random.

Needs matplotlib: pip install 'ulsam_fused[plot]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("image", nargs="?", type=pathlib.Path, metavar="IMAGE", help="a picture that Pillow can read")
    parser.add_argument("--demo", action="store_true", help="take matplotlib's photograph of Grace Hopper instead")
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, metavar="FILE.png", help="default: IMAGE's name + -attention.png"
    )
    parser.add_argument("--num-splits", type=int, metavar="G", help=f"divides {stem.CHANNELS} (default: 4)")
    parser.add_argument("--size", type=int, metavar="PX", help="longer side for the filters (default: 320)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--backend", choices=backends.BACKENDS, default="auto")
    devices.add_device_argument(parser)
    group = backbone.add_arguments(parser)
    group.add_argument("--checkpoint", type=pathlib.Path, metavar="FILE", help="its weights (default: random ones)")


def run(args: argparse.Namespace) -> int:
    if (args.image is None) != args.demo:
        raise UserError("give the name of a picture, or --demo" + (", not both" if args.demo else ""))
    backbone.check(args, "checkpoint")
    if args.model is not None and (args.num_splits is not None or args.size is not None):
        raise UserError("--num-splits and --size are for the filters; with --model, say --insert LAYER=G")
    num_splits = 4 if args.num_splits is None else args.num_splits
    size = 320 if args.size is None else args.size
    if num_splits < 1 or stem.CHANNELS % num_splits:
        raise UserError(f"--num-splits must divide the {stem.CHANNELS} channels of the filter bank, got {num_splits}")
    if not 32 <= size <= 4096:
        raise UserError(f"--size must be from 32 to 4096, got {size}")
    output = args.output or pathlib.Path(f"{'demo' if args.demo else args.image.stem}-attention.png")
    plot.require(output)
    check_output(output)
    path = pictures.demo() if args.demo else args.image
    if args.model is not None:
        return model_maps.run(args, path, output)
    device = devices.pick(args.device)
    shown = read(path, size)
    try:
        backend = backends.resolve(args.backend, device)
        maps = attend(shown.to(device), num_splits, args.seed, backend).cpu()
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    figures = [(peak(a), entropy(a)) for a in maps]
    _print(shown, maps, figures, backend, device)
    draw(shown, _panels(maps, figures), _headline(num_splits, args.seed), output)
    print(output.resolve())
    return 0


def read(path: pathlib.Path, size: int) -> Tensor:
    """The picture as [3, H, W] in 0..1, upright, its longer side `size`, both sides multiples of the stem's stride."""
    from PIL import Image

    image = pictures.opened(path)
    scale = size / max(image.size)
    width, height = (max(4, round(side * scale / stem.STRIDE)) * stem.STRIDE for side in image.size)
    return pictures.pixels(image.resize((width, height), Image.Resampling.LANCZOS))


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


def _print(
    picture: Tensor, maps: Tensor, figures: list[tuple[float, float]], backend: str, device: torch.device
) -> None:
    g, h, w = maps.shape
    print(f"picture {picture.shape[2]} x {picture.shape[1]}, {g} maps of {w} x {h}, backend {backend} on {device}")
    print(f"untrained: fixed filters, random weights. A uniform map has max*H*W 1 and entropy {math.log(h * w):.2f}")
    print(f"{'subspace':>8} {'max*H*W':>9} {'entropy':>8}  channels respond to")
    for k, (top, nats) in enumerate(figures):
        print(f"{k:>8} {top:>9.1f} {nats:>8.2f}  {stem.families_of(k, g)}")


def _panels(maps: Tensor, figures: list[tuple[float, float]]) -> list[Panel]:
    """Each map on its own scale from 0 to its maximum."""
    g, h, w = maps.shape
    return [
        Panel(
            f"{k}: {stem.families_of(k, g)}\nmax·HW {top:.0f}, entropy {nats:.1f} of {math.log(h * w):.1f}",
            maps[k] / maps[k].max(),
        )
        for k, (top, nats) in enumerate(figures)
    ]


def _headline(g: int, seed: int) -> str:
    return (
        f"ULSAM attention, {g} subspace{'s' if g > 1 else ''}: UNTRAINED, fixed filters, random weights (seed {seed}); "
        "each map on its own scale"
    )
