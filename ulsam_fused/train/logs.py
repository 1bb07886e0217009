"""What a training leaves behind to be read: log.csv, a row for each epoch; broken.txt; TensorBoard's events."""

import csv
import pathlib
from collections.abc import Mapping
from typing import Any

from ..console.errors import UserError
from .metrics import Scores

COLUMNS = (
    "epoch", "lr", "train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5",
    "ema_loss", "ema_top1", "ema_top5", "broken", "seconds",
)  # fmt: skip


class Logs:
    """Of the first process. Rows from `epoch` on, left by a training that is now continued from before, are dropped."""

    def __init__(self, folder: pathlib.Path, epoch: int, step: int, tensorboard: bool) -> None:
        self.folder = folder
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError(
                    f"TensorBoard cannot be imported ({error}); pip install tensorboard, or --no-tensorboard"
                ) from None
            self.writer = SummaryWriter(folder / "tensorboard", purge_step=step)
        rows = []
        if (folder / "log.csv").exists():
            with (folder / "log.csv").open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]
        with (folder / "log.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)

    def epoch(
        self, epoch: int, step: int, lr: float, scores: Mapping[str, Scores], broken: int, seconds: float
    ) -> None:
        """scores: of "train" and "val", and of "ema" where there is an average."""
        row: dict[str, object] = {"epoch": epoch, "lr": f"{lr:.6g}", "broken": broken, "seconds": f"{seconds:.1f}"}
        for name, of in scores.items():
            row[f"{name}_loss"] = f"{of.loss:.6f}"
            row |= {f"{name}_top1": f"{of.top1:.3f}", f"{name}_top5": f"{of.top5:.3f}"}
            for kind in ("loss", "top1", "top5"):
                self.scalar(f"{kind}/{name}", getattr(of, kind), step)
        with (self.folder / "log.csv").open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        self.scalar("lr", lr, step)
        if self.writer is not None:
            self.writer.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
