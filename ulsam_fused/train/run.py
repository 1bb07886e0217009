"""A training from its options to its end: set up, resume, epochs, checkpoints."""

import argparse
import os
import pathlib
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..console import devices
from ..console import model_options as backbone
from ..console.errors import UserError
from ..distributed import sync_batchnorm
from ..models.mobilenet import MobileNet
from . import (
    checkpoint,
    dataset,
    metrics,
    pretrained,
    processes,
    seeds,
)
from . import (
    dataset_folders as layouts,
)
from . import (
    transforms as reader,
)
from .logs import Logs
from .loop import Loop
from .unreadable import Broken

STOPPED = 143
"""128 + SIGTERM, as a shell reports it."""

IDENTITY = (
    "model", "width", "attention", "layout", "reader", "size", "resize", "epochs", "optimizer", "lr", "schedule",
    "step_epochs", "warmup", "momentum", "weight_decay", "no_norm_decay", "label_smoothing", "ema", "seed",
    "limit_steps",
)  # fmt: skip
"""Options that make a training what it is: a checkpoint of others is not continued."""


def run(args: argparse.Namespace) -> int:
    """Train; the exit code.

    Raises:
        UserError: what was asked for is not possible here, or the data or a checkpoint is not what it should be.
    """
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not args.deterministic
    group = processes.start(args.device)
    try:
        return _Training(args, group).run()
    finally:
        processes.stop()


class _Training:
    def __init__(self, args: argparse.Namespace, group: processes.Processes) -> None:
        self.args, self.group = args, group
        self.data = layouts.read(args.layout, args.data)
        self.broken = Broken(self.data, args.max_broken)
        self.best = -1.0
        self.stop = processes.Stop(group)
        self.stop.listen()
        reading = reader.require(args.reader)
        together = args.batch_size * group.world
        steps = len(self.data.train) // together
        if steps == 0:
            raise UserError(f"{len(self.data.train)} training images do not fill one batch of {together}")
        steps = min(steps, args.limit_steps or steps)
        found = self._resumed()
        torch.manual_seed(seeds.derive(args.seed, "weights"))
        model = backbone.build(args, num_classes=len(self.data.classes))
        lines = [] if found or args.weights is None else pretrained.load(args.weights, model)
        self.model = self._placed(model)
        views = tuple(
            dataset.Views(images, args.reader, args.size, args.resize, args.seed, training)
            for images, training in ((self.data.train, True), (self.data.val, False))
        )
        self.loop = Loop(args, group, self.model, self._wrapped(), (views[0], views[1]), steps, self.broken, self.stop)
        self.epoch, self.start = 0, 0
        self.totals = metrics.Totals(group.device)
        if found:
            self._restore(found[1])
        self._say(
            f"{backbone.describe(args)}; {devices.describe(group.device)}, {group.world} process(es), amp {args.amp}",
            f"data: {args.layout}, {len(self.data.train)} training and {len(self.data.val)} test images, "
            f"{len(self.data.classes)} classes; reader: {reading}",
            f"{args.epochs} epochs of {steps} steps of {together} images",
            *lines,
            *([f"resumed from {found[0]}: epoch {self.epoch}, step {self.start}"] if found else []),
        )

    def run(self) -> int:
        args, group = self.args, self.group
        logs = None
        if group.first:
            step = self.epoch * self.loop.steps + self.start
            logs = Logs(args.output, self.epoch, step, not args.no_tensorboard)
        try:
            while self.epoch < args.epochs:
                if not self._one_epoch(logs):
                    self._save()
                    self._say(f"stopped by SIGTERM, saved at epoch {self.epoch}, step {self.start}")
                    return STOPPED
        finally:
            if logs is not None:
                logs.close()
        self._say(f"done: best top-1 {self.best:.2f} %; {args.output / checkpoint.BEST} has its weights")
        return 0

    def _one_epoch(self, logs: Logs | None) -> bool:
        """Whether it came to its end."""
        began = time.perf_counter()
        self.start = self.loop.train(self.epoch, self.start, self.totals, logs)
        if self.start < self.loop.steps:
            return False
        models: dict[str, nn.Module] = {"val": self.model}
        if self.loop.average is not None:
            models["ema"] = self.loop.average.model
        scores = self.loop.evaluate(models)
        if scores is None:
            return False
        self.broken.merge(self.group)
        scores["train"] = metrics.scores(self.group.sum(self.totals.sums))
        self._report(scores, time.perf_counter() - began, logs)
        chosen = "ema" if "ema" in scores else "val"
        self.epoch, self.start, self.totals = self.epoch + 1, 0, metrics.Totals(self.group.device)
        better = scores[chosen].top1 > self.best
        self.best = max(self.best, scores[chosen].top1)
        if better and self.group.first:
            content = {"model": models[chosen].state_dict(), "top1": self.best, "epoch": self.epoch}
            checkpoint.save_weights(self.args.output, content)
        self._save()
        return True

    def _report(self, scores: dict[str, metrics.Scores], seconds: float, logs: Logs | None) -> None:
        if logs is None:
            return
        step = (self.epoch + 1) * self.loop.steps
        logs.epoch(self.epoch, step, self.loop.rate(self.epoch, self.loop.steps - 1), scores, len(self.broken), seconds)
        for name in ("train", "val", "ema"):
            if name in scores:
                of = scores[name]
                print(
                    f"epoch {self.epoch} {name}: loss {of.loss:.4f}, top-1 {of.top1:.2f} %, top-5 {of.top5:.2f} % "
                    f"of {of.images} images",
                    flush=True,
                )
        if len(self.broken):
            path = self.args.output / "broken.txt"
            self.broken.write(path)
            print(f"{len(self.broken)} images missing or broken, left out and named in {path}; the first:", flush=True)
            print("\n".join(f"  {line}" for line in self.broken.lines()[:3]), flush=True)

    def _placed(self, model: MobileNet) -> nn.Module:
        args, device = self.args, self.group.device
        if args.sync_bn and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif args.sync_bn:
            sync_batchnorm(model)
            self._say("--sync-bn: on a CPU the norms inside ULSAM are synchronised, those of the backbone are not")
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        return model.to(device=device, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def _wrapped(self) -> Any:
        network: Any = self.model
        if self.group.world > 1:
            index = self.group.device.index
            network = DistributedDataParallel(network, device_ids=None if index is None else [index])
        return torch.compile(network) if self.args.compile else network

    def _identity(self) -> dict[str, object]:
        args = self.args
        return {name: getattr(args, name) for name in IDENTITY} | {
            "insert": backbone.places("insert", args.insert),
            "replace": backbone.places("replace", args.replace),
            "batch size of all processes": args.batch_size * self.group.world,
            "training images": len(self.data.train),
            "classes": list(self.data.classes),
        }

    def _resumed(self) -> tuple[pathlib.Path, dict[str, Any]] | None:
        """What the first process finds to resume from; an error there is one everywhere."""
        found: Any = None
        if self.group.first:
            try:
                found = self._find()
            except UserError as error:
                found = str(error)
        found = self.group.share(found)
        if isinstance(found, str):
            raise UserError(found)
        return found  # type: ignore[no-any-return]

    def _find(self) -> tuple[pathlib.Path, dict[str, Any]] | None:
        args = self.args
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {args.output}: cannot be made: {error}") from None
        if args.resume == "none":
            there = [args.output / name for name in (checkpoint.LAST, checkpoint.PREVIOUS)]
            if any(path.exists() for path in there):
                raise UserError(f"--output {args.output} already holds a training; --resume auto continues it")
            return None
        if args.resume == "auto":
            found = checkpoint.latest(args.output, lambda line: print(f"resume: {line}", flush=True))
        else:
            path = pathlib.Path(args.resume)
            found = path, checkpoint.load(path)
        if found is not None:
            checkpoint.check_identity(found[0], found[1]["identity"], self._identity())
        return found

    def _restore(self, content: dict[str, Any]) -> None:
        loop = self.loop
        self.model.load_state_dict(content["model"])
        loop.optimizer.load_state_dict(content["optimizer"])
        loop.scaler.load_state_dict(content["scaler"])
        if loop.average is not None:
            loop.average.model.load_state_dict(content["average"])
        self.epoch, self.start, self.best = content["epoch"], content["step"], content["best"]
        self.broken.found = {which: dict(found) for which, found in content["broken"].items()}
        if self.group.first:  # the others' sums are in it, and they start from 0
            self.totals.sums.copy_(content["totals"])

    def _save(self) -> None:
        """By all processes together; the first one writes, and the others wait, so that none ends before it has."""
        self.broken.merge(self.group)
        totals = self.group.sum(self.totals.sums)
        if self.group.first:
            self._write(totals)
        self.group.share(None)

    def _write(self, totals: Tensor) -> None:
        loop = self.loop
        content = {
            "identity": self._identity(),
            "options": {name: value if value is None else str(value) for name, value in vars(self.args).items()},
            "epoch": self.epoch,
            "step": self.start,
            "totals": totals,
            "best": self.best,
            "broken": self.broken.found,
            "model": self.model.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "scaler": loop.scaler.state_dict(),
            "average": None if loop.average is None else loop.average.model.state_dict(),
        }
        checkpoint.save(self.args.output, content)

    def _say(self, *lines: str) -> None:
        if self.group.first:
            print("\n".join(lines), flush=True)
