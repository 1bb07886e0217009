"""A training from its options to its end: set up, resume, epochs, checkpoints."""

import os
import time

import torch
from torch import Tensor, nn

from ..console import model_options
from ..console.errors import UserError
from ..console.output import Attempts
from . import checkpoint, dataset_folders, metrics, network, pretrained, processes, report, resume, seeds, transforms
from .checkpoint import Content
from .dataset import Views
from .dataset_folders import Images
from .logs import Logs
from .loop import Loop
from .options import Options
from .processes import Processes
from .unreadable import Broken

STOPPED = 143
"""128 + SIGTERM, as a shell reports it; after SIGHUP too."""


def run(args: Options) -> int:
    """Train; the exit code.

    Raises:
        UserError: what was asked for is not possible here; something is wrong with the data or a checkpoint.
    """
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not args.deterministic
    together = processes.start(args.device)
    try:
        return _Training(args, together).run()
    finally:
        processes.stop()


class _Training:
    """A training at `step` of `epoch`, with the totals of this epoch so far and the best top-1 accuracy in percent."""

    def __init__(self, args: Options, together: Processes) -> None:
        self.args, self.processes, self.attempts = args, together, Attempts()
        data = dataset_folders.read(args.layout, args.data)
        stop = processes.Stop(together)
        stop.listen()
        reader = transforms.require(args.reader)
        steps = _steps(args, len(data.train), together.world)
        self.identity = resume.identity(args, data, together.world)
        found = resume.find(args, together, self.identity, self._say)
        torch.manual_seed(seeds.derive(args.seed, "weights"))
        model = model_options.build(args, num_classes=len(data.classes))
        lines = [] if found or args.weights is None else pretrained.load(args.weights, model)
        self.model = network.place(model, args, together.device)
        self.broken = Broken(data, args.max_broken)

        def views(images: Images, training: bool) -> Views:
            return Views(images, args.reader, args.size, args.resize, args.seed, training)

        self.loop = Loop(
            args, together, self.model, network.wrap(self.model, args, together),
            views(data.train, training=True), views(data.val, training=False), steps, self.broken, stop,
        )  # fmt: skip
        self.epoch, self.step, self.best = 0, 0, -1.0
        self.totals = metrics.Totals(together.device)
        if found:
            self._restore(found.content)
            lines.append(f"resumed from {found.path}: epoch {self.epoch}, step {self.step}")
        self._say(*report.head(args, together, data, steps, reader), *lines)

    def run(self) -> int:
        """All epochs that are left; the exit code."""
        args, logs = self.args, None
        if self.processes.first:
            step = self.epoch * self.loop.steps + self.step
            logs = Logs(args.output, self.epoch, step, not args.no_tensorboard, self.attempts)
        try:
            while self.epoch < args.epochs:
                if not self._one_epoch(logs):
                    self._save()
                    self.broken.check()
                    self._say(f"stopped by {self.loop.stop.name()}, saved at epoch {self.epoch}, step {self.step}")
                    return STOPPED
        finally:
            if logs is not None:
                logs.close()
        self._say(f"done: best top-1 {self.best:.2f} %; {args.output / checkpoint.BEST} has its weights")
        return 0

    def _one_epoch(self, logs: Logs | None) -> bool:
        """Whether it came to its end; False where it was stopped. Its checkpoint comes before all reports."""
        began = time.perf_counter()
        self.step = self.loop.train(self.epoch, self.step, self.totals, logs)
        if self.step < self.loop.steps:
            return False
        models = {"val": self.model}
        if self.loop.average is not None:
            models["ema"] = self.loop.average.module
        scores = self.loop.evaluate(models)
        if scores is None:
            return False
        scores["train"] = metrics.scores(self.processes.sum(self.totals.sums))
        ended = self.epoch
        self.epoch, self.step, self.totals = ended + 1, 0, metrics.Totals(self.processes.device)
        chosen = "ema" if "ema" in scores else "val"
        self._keep_best(models[chosen], scores[chosen].top1)
        self._save()
        if logs is not None:
            self._report(ended, scores, time.perf_counter() - began, logs)
        self.broken.check()
        return True

    def _report(self, epoch: int, scores: dict[str, metrics.Scores], seconds: float, logs: Logs) -> None:
        loop, path = self.loop, self.args.output / "broken.txt"
        rate = loop.rate(epoch, loop.steps - 1)
        logs.epoch(epoch, (epoch + 1) * loop.steps, rate, scores, len(self.broken), seconds)
        self._say(*report.scores(epoch, scores))
        if len(self.broken):
            self.attempts(path.name, lambda: self.broken.write(path))
            self._say(*report.unreadable(self.broken, path))

    def _keep_best(self, model: nn.Module, top1: float) -> None:
        if top1 > self.best:
            content = {"model": model.state_dict(), "top1": top1, "epoch": self.epoch}
            if not self.processes.first or self.attempts(
                checkpoint.BEST, lambda: checkpoint.save_weights(self.args.output, content)
            ):
                self.best = top1

    def _restore(self, content: Content) -> None:
        loop = self.loop
        self.model.load_state_dict(content["model"])
        loop.optimizer.load_state_dict(content["optimizer"])
        loop.scaler.load_state_dict(content["scaler"])
        if loop.average is not None and content["average"] is not None:
            loop.average.load_state_dict(content["average"])
        self.epoch, self.step, self.best = content["epoch"], content["step"], content["best"]
        self.broken.found = {which: dict(found) for which, found in content["broken"].items()}
        if self.processes.first:  # they are the sums of all processes, so the others start from 0
            self.totals.sums.copy_(content["totals"])

    def _save(self) -> None:
        """Called by all processes. The first one writes while the others wait, so that none ends before.

        Raises:
            UserError: in every process, that the first one cannot write.
        """
        self.broken.merge(self.processes)
        totals, problem = self.processes.sum(self.totals.sums), ""
        if self.processes.first:
            try:
                checkpoint.save(self.args.output, self._content(totals))
            except UserError as error:
                problem = str(error)
        problem = self.processes.share(problem)
        if problem:
            raise UserError(problem)

    def _content(self, totals: Tensor) -> Content:
        loop = self.loop
        return {
            "identity": self.identity,
            "options": {name: value if value is None else str(value) for name, value in vars(self.args).items()},
            "epoch": self.epoch,
            "step": self.step,
            "totals": totals,
            "best": self.best,
            "broken": self.broken.found,
            "model": self.model.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "scaler": loop.scaler.state_dict(),
            "average": None if loop.average is None else loop.average.state_dict(),
        }

    def _say(self, *lines: str) -> None:
        if self.processes.first:
            self.attempts.say(*lines)


def _steps(args: Options, images: int, world: int) -> int:
    """In one epoch of so many training images."""
    together = args.batch_size * world
    steps = images // together
    if steps == 0:
        raise UserError(f"{images} training images do not fill one batch of {together}")
    return min(steps, args.limit_steps or steps)
