"""`ulsam-fused attend IMAGE`: attention maps drawn over the picture, of an untrained layer or of a network."""

import argparse
import math
import pathlib

import torch
from torch import Tensor

from .. import backends
from ..bench import plot
from ..console import devices, files, images, model_options, network_maps
from ..console.drawing import Panel, draw, entropy, peak
from ..console.errors import UserError
from ..console.picture_features import CHANNELS, STRIDE, families_of, features
from ..console.tables import aligned
from ..modules import ULSAM

SPREAD = 1.3
"""The standard deviation of each map's logits: it gives the map a peak that can be seen."""


def run(args: argparse.Namespace) -> int:
    if (args.image is None) != args.demo:
        raise UserError("give the name of a picture, or --demo" + (", not both" if args.demo else ""))
    model_options.check(args, "checkpoint")
    if args.model is not None and (args.num_splits is not None or args.size is not None):
        raise UserError("--num-splits and --size are for the filters; with --model, say --insert LAYER=G")
    num_splits = 4 if args.num_splits is None else args.num_splits
    size = 320 if args.size is None else args.size
    if num_splits < 1 or CHANNELS % num_splits:
        raise UserError(f"--num-splits must divide the {CHANNELS} channels of the filter bank, got {num_splits}")
    if not 32 <= size <= 4096:
        raise UserError(f"--size must be from 32 to 4096, got {size}")
    output = args.output or pathlib.Path(f"{'demo' if args.demo else args.image.stem}-attention.png")
    plot.require(output)
    files.check_output(output)
    path = images.demo() if args.demo else args.image
    if args.model is not None:
        return _network(args, path, output)
    device = devices.pick(args.device)
    shown = read(path, size)
    try:
        backend = backends.resolve(args.backend, device)
        maps = attend(shown.to(device), num_splits, args.seed, backend).cpu()
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    _print(shown, maps, backend, device)
    headline = f"ULSAM attention, {num_splits} subspace{'s' if num_splits > 1 else ''}: UNTRAINED, fixed filters, "
    headline += f"random weights (seed {args.seed}); each map on its own scale"
    draw(shown, _panels(maps), headline, output)
    print(output.resolve())
    return 0


def read(path: pathlib.Path, size: int) -> Tensor:
    """The picture as [3, H, W] in 0..1, upright. Its longer side is `size`; both sides are multiples of STRIDE."""
    from PIL import Image

    image = images.opened(path)
    scale = size / max(image.size)
    width, height = (max(4, round(side * scale / STRIDE)) * STRIDE for side in image.size)
    return images.pixels(image.resize((width, height), Image.Resampling.LANCZOS))


def attend(picture: Tensor, num_splits: int, seed: int, backend: str) -> Tensor:
    """The maps A [num_splits, h, w] of an untrained layer over the filters' responses.

    Weights are uniform in (0.5, 1.5) from the seed: positive, so that a map rises where its filters respond. Each
    subspace's pointwise weights are then scaled to give its logits the standard deviation SPREAD.
    """
    x = features(picture)
    layer = ULSAM(CHANNELS, num_splits, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (layer.dw_weight, layer.pw_weight):
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
        layer.pw_weight.div_(CHANNELS)  # logits of order 1: the logarithm below meets no underflow
        layer.to(x.device)
        logits = layer.attention(x).double().log()  # up to a constant for each map
        spread = logits.std((2, 3)).flatten().clamp_min(1e-6).float()
        layer.pw_weight.mul_((SPREAD / spread).repeat_interleave(CHANNELS // num_splits))
        attention: Tensor = layer.attention(x)[0]
    return attention


def _print(picture: Tensor, maps: Tensor, backend: str, device: torch.device) -> None:
    g, h, w = maps.shape
    print(f"picture {picture.shape[2]} x {picture.shape[1]}, {g} maps of {w} x {h}, backend {backend} on {device}")
    print(f"untrained: fixed filters, random weights. Uniform: max*H*W 1, entropy {math.log(h * w):.2f}")
    print(f"{'subspace':>8} {'max*H*W':>9} {'entropy':>8}  channels respond to")
    for k, a in enumerate(maps):
        print(f"{k:>8} {peak(a):>9.1f} {entropy(a):>8.2f}  {families_of(k, g)}")


def _panels(maps: Tensor) -> list[Panel]:
    """Each map on its own scale from 0 to its maximum."""
    g, h, w = maps.shape
    panels = []
    for k, a in enumerate(maps):
        told = f"max·HW {peak(a):.0f}, entropy {entropy(a):.1f} of {math.log(h * w):.1f}"
        panels.append(Panel(f"{k}: {families_of(k, g)}\n{told}", a / a.max()))
    return panels


def _network(args: argparse.Namespace, path: pathlib.Path, output: pathlib.Path) -> int:
    """Draw the maps of the ULSAMs inside args.model."""
    if not args.insert and not args.replace:
        raise UserError("--model without ULSAM has no maps: give --insert LAYER=G or --replace LAYER=G")
    device = devices.pick(args.device)
    model, weights = network_maps.model_with_weights(args, args.seed)
    shown = images.centre(path)
    try:
        backend = backends.resolve(args.backend, device)
        maps = network_maps.maps_of(model.to(device), images.normalised(shown).to(device), backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    broken = [layer for layer, a in maps.items() if not a.isfinite().all()]
    if broken:
        raise UserError(f"the maps of layer {broken[0]} are not finite: weights are not, or overflow")
    table = [["layer", "map", "subspace", "max*H*W", "min*H*W", "entropy", "of"]]
    panels = []
    for layer, stack in maps.items():
        for k, a in enumerate(stack):
            h, w = a.shape
            top, low = peak(a), float(a.min()) * a.numel()
            figures = (f"{top:.2f}", f"{low:.2f}", f"{entropy(a):.2f}", f"{math.log(h * w):.2f}")
            table.append([str(layer), f"{w} x {h}", str(k), *figures])
            panels.append(
                Panel(f"layer {layer}, subspace {k}\nHW·map from {low:.2f} to {top:.2f}", network_maps.spread(a))
            )
    crop = f"shorter side {images.SHORTER}, its middle {images.CROP} x {images.CROP}"
    print(f"{model_options.describe(args)}, backend {backend} on {device}")
    print(weights)
    print(f"{crop}; a uniform map has max*H*W 1")
    print("\n".join(aligned(table, left=0)))
    draw(shown, panels, f"{model_options.describe(args)}\n{weights}; each map on its own scale", output)
    print(output.resolve())
    return 0
