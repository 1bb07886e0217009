"""Tiny folders of real image files, and options with which the training command takes a moment on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy

SMALL = (
    "--size", "32", "--resize", "36", "--width", "0.1", "--insert", "14=4", "--batch-size", "4", "--workers", "0",
    "--print-every", "1", "--device", "cpu", "--no-tensorboard",
)  # fmt: skip
"""Options for 32x32 images and a model of 0.1 M parameters."""


def image(path: Path, seed: int, height: int = 40, width: int = 44) -> None:
    """Write an image of one colour with noise, drawn from the seed; PNG or JPEG, as the name says."""
    from PIL import Image

    generator = numpy.random.default_rng(seed)
    colour = generator.integers(0, 200, 3)
    pixels = colour + generator.integers(0, 56, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(numpy.uint8)).save(path)


def images(root: Path, names: Sequence[str]) -> None:
    """Write images with these names below root."""
    for seed, name in enumerate(names):
        image(root / name, seed)


def imagefolder(root: Path, train: int = 10, val: int = 5) -> Path:
    """Write so many images for each of the classes a and b; returns root."""
    for folder, count in (("train", train), ("val", val)):
        images(root, [f"{folder}/{c}/{i}.{'jpg' if i % 2 else 'png'}" for c in "ab" for i in range(count)])
    return root
