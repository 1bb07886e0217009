"""The logs of a training: log.csv, with a row for each epoch, and TensorBoard's events."""

import csv
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..console.errors import UserError
from .metrics import Scores

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = (
    "epoch", "lr", "train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5",
    "ema_loss", "ema_top1", "ema_top5", "broken", "seconds",
)  # fmt: skip


class Logs:
    """Written by the first process, from an epoch and a step on. What an earlier run logged after these is dropped.

    Args:
        step: counted over all epochs from 0.

    Raises:
        UserError: TensorBoard is asked for and cannot be imported.
    """

    def __init__(self, folder: pathlib.Path, epoch: int, step: int, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        self.writer = _tensorboard(folder / "tensorboard", step) if tensorboard else None
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]
        with self.path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)

    def epoch(
        self, epoch: int, step: int, lr: float, scores: Mapping[str, Scores], broken: int, seconds: float
    ) -> None:
        """Log the end of an epoch. scores: of "train" and "val", and of "ema" if there is an average."""
        row: dict[str, object] = {"epoch": epoch, "lr": f"{lr:.6g}", "broken": broken, "seconds": f"{seconds:.1f}"}
        for name, of in scores.items():
            for kind, value, digits in (("loss", of.loss, 6), ("top1", of.top1, 3), ("top5", of.top5, 3)):
                row[f"{name}_{kind}"] = f"{value:.{digits}f}"
                self.scalar(f"{kind}/{name}", value, step)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        self.scalar("lr", lr, step)
        if self.writer is not None:
            self.writer.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Log one value to TensorBoard."""
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is pending."""
        if self.writer is not None:
            self.writer.close()


def _tensorboard(folder: pathlib.Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"TensorBoard cannot be imported ({error}); pip install tensorboard, or --no-tensorboard"
        ) from None
    return SummaryWriter(folder, purge_step=step)
