"""The attention maps of the ULSAMs inside a network, for one picture."""

import argparse

import torch
from torch import Tensor

from ..models.mobilenet import MobileNet
from ..modules import ULSAM
from . import model_options
from . import weights as checkpoint


def maps_of(model: MobileNet, x: Tensor, backend: str) -> dict[int, Tensor]:
    """The maps [g, h, w] of every ULSAM for one picture [3, H, W], by layer; on the CPU."""
    for layer in model.attention_layers().values():
        assert isinstance(layer, ULSAM)
        layer.backend = backend
    with torch.no_grad():
        return {layer: a[0].float().cpu() for layer, a in model.attention_maps(x[None]).items()}


def spread(a: Tensor) -> Tensor:
    """The map on a scale from 0 at its smallest value to 1 at its largest; 0 where it is uniform but for rounding."""
    low, high = a.min(), a.max()
    return torch.zeros_like(a) if high - low <= 1e-5 * high else (a - low) / (high - low)


def model_with_weights(args: argparse.Namespace, seed: int) -> tuple[MobileNet, str]:
    """The model that args ask for, in the mode that suits its weights, and a sentence on where they come from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if args.checkpoint is None:
            # an untrained network has no fitting running statistics: signals would die out layer by layer
            note = f"UNTRAINED: all weights are random (seed {seed}), norms take this picture's statistics"
            return model_options.build(args).train(), note
        state = checkpoint.read(args.checkpoint)
        model = model_options.build(args, num_classes=checkpoint.classes(args.checkpoint, state)).eval()
    absent = checkpoint.load(args.checkpoint, state, model)
    weights = f"weights of {args.checkpoint.name}"
    if absent:
        layers = f"layer{'s' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"
        weights += f", but the ULSAM of {layers} is not in it: UNTRAINED, random (seed {seed})"
    return model, weights
