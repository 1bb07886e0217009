"""One epoch of training and one evaluation."""

import itertools
import math
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler

from ..console.errors import UserError
from ..console.images import MEAN, STD
from . import dataset, metrics, recipe, seeds
from .dataset import Batch, Place, Views
from .logs import Logs
from .options import Options
from .processes import Processes, Stop
from .unreadable import Broken


class Loop:
    """What every step needs.

    Args:
        model: the model itself, which is evaluated.
        network: the model as training calls it, perhaps wrapped and compiled.
        steps: in one epoch.
        broken: collects the unreadable images.
    """

    def __init__(
        self,
        args: Options,
        processes: Processes,
        model: nn.Module,
        network: Callable[[Tensor], Tensor],
        training_views: Views,
        test_views: Views,
        steps: int,
        broken: Broken,
        stop: Stop,
    ) -> None:
        self.args, self.processes, self.stop, self.broken = args, processes, stop, broken
        self.model, self.network, self.steps = model, network, steps
        self.training_views, self.test_views = training_views, test_views
        self.optimizer = recipe.optimizer(model, args)
        self.scaler = recipe.scaler(args.amp, processes.device)
        self.average = None if args.ema is None else recipe.Average(model, args.ema)
        self.rate = recipe.learning_rate(args, steps)
        mean, std = (torch.tensor(values, device=processes.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
        self._mean, self._std = mean, std

    def train(self, epoch: int, start: int, totals: metrics.Totals, logs: Logs | None) -> int:
        """Train one epoch from step `start` on, and add to `totals`.

        Returns:
            The step to continue with: the number of steps in an epoch, or less where all processes agreed to stop.

        Raises:
            UserError: no image is readable; the loss is not finite.
        """
        args, world = self.args, self.processes.world
        order = dataset.TrainingOrder(
            len(self.training_views), args.batch_size, args.seed, epoch, self.steps, start, self.processes.rank, world
        )
        self.model.train()
        began, before = time.perf_counter(), start
        for step, batch in enumerate(self._batches(self.training_views, order), start):
            self._note("train", batch)
            if len(batch.labels) != args.batch_size:
                failure = next(iter(batch.broken))
                name = self.training_views.images.names[failure.number]
                raise UserError(f"no readable image after {name}: {failure.reason}")
            x, labels = self._prepared(batch)
            loss = self._step(epoch, step, x, labels, totals)
            if (step + 1) % args.print_every == 0 or step + 1 == self.steps:
                value = float(loss)
                if not math.isfinite(value):
                    raise UserError(f"epoch {epoch}, step {step}: the loss is {value}; a lower --lr may help")
                now = time.perf_counter()
                speed = (step + 1 - before) * args.batch_size * world / max(now - began, 1e-9)
                began, before = now, step + 1
                self._progress(epoch, step, value, speed, totals, logs)
            if self.stop.agreed():
                return step + 1
        return self.steps

    def evaluate(self, models: dict[str, nn.Module]) -> dict[str, metrics.Scores] | None:
        """Scores of each model over the test set; None where all processes agreed to stop."""
        args, processes = self.args, self.processes
        order = dataset.EveryImage(
            len(self.test_views), args.batch_size, processes.rank, processes.world, args.limit_steps
        )
        longest = max(processes.gather(len(order)))  # all processes must ask about signals equally often
        totals = {name: metrics.Totals(processes.device) for name in models}
        for model in models.values():
            processes.share_buffers(model)
            model.eval()
        batches = iter(self._batches(self.test_views, order))
        for batch in itertools.islice(itertools.chain(batches, itertools.repeat(None)), longest):
            if batch is not None:
                self._note("val", batch)
                if len(batch.labels):
                    x, labels = self._prepared(batch)
                    for name, model in models.items():
                        self._score(model, x, labels, totals[name])
            if self.stop.agreed():
                return None
        return {name: metrics.scores(processes.sum(total.sums)) for name, total in totals.items()}

    def _step(self, epoch: int, step: int, x: Tensor, labels: Tensor, totals: metrics.Totals) -> Tensor:
        """One step of the optimizer; returns the loss."""
        args, device = self.args, self.processes.device
        torch.manual_seed(seeds.derive(args.seed, "step", epoch, step, self.processes.rank))  # for dropout
        recipe.set_rate(self.optimizer, self.rate(epoch, step))
        self.optimizer.zero_grad()
        with recipe.autocast(args.amp, device):
            logits = self.network(x)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=args.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        totals.add(loss, logits, labels)
        return loss.detach()

    @torch.no_grad()
    def _score(self, model: nn.Module, x: Tensor, labels: Tensor, totals: metrics.Totals) -> None:
        with recipe.autocast(self.args.amp, self.processes.device):
            logits = model(x).float()
        totals.add(F.cross_entropy(logits, labels), logits, labels)

    def _note(self, which: str, batch: Batch) -> None:
        """Too many broken images stop the training as a signal does, so that what was trained is saved."""
        self.broken.add(which, batch.broken)
        if self.broken.problem() is not None:
            self.stop.ask()

    def _batches(self, views: Views, order: Sampler[list[Place]]) -> Iterable[Batch]:
        return dataset.loader(views, order, self.args.workers, self.processes.device.type == "cuda")

    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images float32 [n, 3, S, S], normalised, and labels [n], both on the device."""
        device = self.processes.device
        x = batch.images.to(device, non_blocking=True).to(torch.float32)
        x = (x - self._mean) / self._std
        if self.args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, batch.labels.to(device, non_blocking=True)

    def _progress(
        self, epoch: int, step: int, loss: float, speed: float, totals: metrics.Totals, logs: Logs | None
    ) -> None:
        if logs is None:
            return
        so_far = metrics.scores(totals.sums)
        logs.attempts.say(
            f"epoch {epoch} step {step + 1}/{self.steps}: loss {loss:.4f}, so far {so_far.loss:.4f}, "
            f"top-1 {so_far.top1:.2f} %, top-5 {so_far.top5:.2f} %, {speed:.0f} images/s"
        )
        logs.scalar("step/loss", loss, epoch * self.steps + step)
