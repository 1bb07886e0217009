"""The lines that a training prints."""

import pathlib
from collections.abc import Mapping, Sequence

from ..console import devices, model_options
from .dataset_folders import Data
from .metrics import Scores
from .options import Options
from .processes import Processes
from .unreadable import Broken


def head(args: Options, processes: Processes, data: Data, steps: int, reader: str) -> list[str]:
    """Model, machine, data and length. reader: its name and version."""
    device = processes.device
    lines = [
        f"{model_options.describe(args)}; {devices.describe(device)}, {processes.world} process(es), amp {args.amp}",
        f"data: {args.layout}, {len(data.train)} training and {len(data.val)} test images, reader: {reader}",
        f"{len(data.classes)} classes: {some(data.classes)}",
        f"{args.epochs} epochs of {steps} steps of {args.batch_size * processes.world} images",
    ]
    if args.sync_bn and device.type == "cpu":
        lines.append("--sync-bn: on a CPU only the norms inside ULSAM are synchronised, not those of the backbone")
    return lines


def some(names: Sequence[str]) -> str:
    """At most six of the names, the last one among them."""
    return ", ".join(names if len(names) <= 6 else (*names[:5], "...", names[-1]))


def scores(epoch: int, found: Mapping[str, Scores]) -> list[str]:
    """A line each for "train", "val" and "ema"."""
    return [
        f"epoch {epoch} {name}: loss {of.loss:.4f}, top-1 {of.top1:.2f} %, top-5 {of.top5:.2f} % of {of.images} images"
        for name, of in ((name, found[name]) for name in ("train", "val", "ema") if name in found)
    ]


def unreadable(broken: Broken, path: pathlib.Path) -> list[str]:
    """How many images are broken, and the first three; the file `path` names them all."""
    return [
        f"{len(broken)} images missing or broken, left out and named in {path}; the first:",
        *(f"  {line}" for line in broken.lines()[:3]),
    ]
