"""The options of `ulsam-fused attend`."""

import argparse
import pathlib

from ..._names import BACKENDS
from ...console import arguments

_DESCRIPTION = """\
Runs a picture through a fixed bank of filters (edges, spots, colours: nothing is learned) and one ULSAM layer, and
draws the layer's attention maps over the picture. The layer is untrained: its weights are random and positive, and
scaled so that the logits of each map have standard deviation 1.3; with initial weights, maps are nearly uniform.
The picture shows how subspaces differ in what they look at. It does not show what a trained network has learned.

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
    parser.add_argument("--num-splits", type=int, metavar="G", help="divides the filters' 48 channels (default: 4)")
    parser.add_argument("--size", type=int, metavar="PX", help="longer side for the filters (default: 320)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    arguments.add_device(parser)
    group = arguments.add_model(parser)
    group.add_argument("--checkpoint", type=pathlib.Path, metavar="FILE", help="its weights (default: random ones)")
