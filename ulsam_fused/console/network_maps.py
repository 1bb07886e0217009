"""`ulsam-fused attend IMAGE --model …`: the maps of the ULSAMs inside a network."""

import argparse
import math
import pathlib

import torch
from torch import Tensor

from .. import backends
from ..console import devices
from ..console import drawing as overlay
from ..console import images as pictures
from ..console import model_options as backbone
from ..console import weights as checkpoint
from ..console.errors import UserError
from ..models.mobilenet import MobileNet
from ..modules import ULSAM


def run(args: argparse.Namespace, path: pathlib.Path, output: pathlib.Path) -> int:
    """Draw the maps of args.model for the picture at `path` to `output`."""
    if not args.insert and not args.replace:
        raise UserError("--model without ULSAM has no maps: give --insert LAYER=G or --replace LAYER=G")
    device = devices.pick(args.device)
    seed = args.seed or 0
    model, weights = _model(args, seed)
    shown = pictures.centre(path)
    try:
        backend = backends.resolve(args.backend, device)
        maps = maps_of(model.to(device), pictures.normalised(shown).to(device), backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    broken = [layer for layer, a in maps.items() if not a.isfinite().all()]
    if broken:
        raise UserError(f"the maps of layer {broken[0]} are not finite: weights are not, or overflow")
    crop = f"shorter side {pictures.SHORTER}, its middle {pictures.CROP} x {pictures.CROP}"
    print(f"{crop}; {backbone.describe(args)}, backend {backend} on {device}")
    print(weights)
    print("a uniform map has max*H*W 1")
    print(f"{'layer':>5} {'map':>9} {'subspace':>8} {'max*H*W':>9} {'min*H*W':>9} {'entropy':>8} {'of':>6}")
    panels = []
    for layer, stack in maps.items():
        for k, a in enumerate(stack):
            h, w = a.shape
            top, low, nats = overlay.peak(a), float(a.min()) * a.numel(), overlay.entropy(a)
            print(f"{layer:>5} {f'{w} x {h}':>9} {k:>8} {top:>9.2f} {low:>9.2f} {nats:>8.2f} {math.log(h * w):>6.2f}")
            title = f"layer {layer}, subspace {k}\nHW·map from {low:.2f} to {top:.2f}"
            panels.append(overlay.Panel(title, spread(a)))
    overlay.draw(shown, panels, f"{backbone.describe(args)}\n{weights}; each map on its own scale", output)
    print(output.resolve())
    return 0


def maps_of(model: MobileNet, x: Tensor, backend: str) -> dict[int, Tensor]:
    """The maps [g, h, w] of every ULSAM for one picture [3, H, W], on the CPU."""
    for layer in model.attention_layers().values():
        assert isinstance(layer, ULSAM)
        layer.backend = backend
    with torch.no_grad():
        return {layer: a[0].float().cpu() for layer, a in model.attention_maps(x[None]).items()}


def spread(a: Tensor) -> Tensor:
    """A map between 0, its smallest value, and 1, its largest; 0 everywhere where it is uniform up to rounding."""
    low, high = a.min(), a.max()
    return torch.zeros_like(a) if high - low <= 1e-5 * high else (a - low) / (high - low)


def _model(args: argparse.Namespace, seed: int) -> tuple[MobileNet, str]:
    """The model in the mode that suits its weights, and a sentence on where they come from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if args.checkpoint is None:
            # running statistics of an untrained network fit nothing: signals would die out layer by layer
            note = f"UNTRAINED: all weights are random (seed {seed}), norms take this picture's statistics"
            return backbone.build(args).train(), note
        state = checkpoint.read(args.checkpoint)
        model = backbone.build(args, num_classes=checkpoint.classes(args.checkpoint, state)).eval()
    absent = checkpoint.load(args.checkpoint, state, model)
    weights = f"weights of {args.checkpoint.name}"
    if absent:
        layers = f"layer{'s' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"
        weights += f", but the ULSAM of {layers} is not in it: UNTRAINED, random (seed {seed})"
    return model, weights
