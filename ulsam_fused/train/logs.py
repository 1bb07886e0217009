"""The logs of a training: log.csv, with a row for each epoch, and TensorBoard's events.

No failure to write them ends a training.
"""

import csv
import io
import os
import pathlib
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..console import files, output
from ..console.errors import UserError, one_line
from ..console.output import Attempts
from .metrics import Scores

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = (
    "epoch", "lr", "train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5",
    "ema_loss", "ema_top1", "ema_top5", "broken", "seconds",
)  # fmt: skip

Row = dict[str, object]


class Logs:
    """Written by the first process, from an epoch and a step on. What an earlier run logged after these is dropped.

    Args:
        step: counted over all epochs from 0.

    Raises:
        UserError: TensorBoard is asked for and cannot be imported.
    """

    def __init__(self, folder: pathlib.Path, epoch: int, step: int, tensorboard: bool, attempts: Attempts) -> None:
        self.path, self.attempts = folder / "log.csv", attempts
        self.writer: SummaryWriter | None = None
        self.rows: list[Row] = []
        if tensorboard:
            writer = _tensorboard()
            self.attempts("TensorBoard", lambda: self._open(writer, folder / "tensorboard", step))
        self.attempts(self.path.name, lambda: self._begin(epoch))

    def epoch(
        self, epoch: int, step: int, lr: float, scores: Mapping[str, Scores], broken: int, seconds: float
    ) -> None:
        """Log the end of an epoch. scores: of "train" and "val", and of "ema" if there is an average."""
        row: Row = {"epoch": epoch, "lr": f"{lr:.6g}", "broken": broken, "seconds": f"{seconds:.1f}"}
        for name, of in scores.items():
            for kind, value, digits in (("loss", of.loss, 6), ("top1", of.top1, 3), ("top5", of.top5, 3)):
                row[f"{name}_{kind}"] = f"{value:.{digits}f}"
                self.scalar(f"{kind}/{name}", value, step)
        self.rows.append(row)
        self.attempts(self.path.name, self._write)
        self.scalar("lr", lr, step)
        self._tell(lambda writer: writer.flush())

    def scalar(self, name: str, value: float, step: int) -> None:
        """Log one value to TensorBoard."""
        self._tell(lambda writer: writer.add_scalar(name, value, step))

    def close(self) -> None:
        """Write out what is pending."""
        self._tell(lambda writer: writer.close())

    def _open(self, writer: "type[SummaryWriter]", folder: pathlib.Path, step: int) -> None:
        self.writer = writer(str(folder), purge_step=step)
        threading.excepthook = _without_tensorboard

    def _tell(self, action: "Callable[[SummaryWriter], None]") -> None:
        """After a failure TensorBoard's writer is given up: it may wait for ever for a thread that has ended."""
        writer = self.writer
        if writer is not None and not self.attempts("TensorBoard", lambda: action(writer)):
            self.writer = None

    def _begin(self, epoch: int) -> None:
        """Keep the rows before this epoch. A file with other lines is kept, too, under another name."""
        if self.path.exists():
            self.rows, damaged = _read(self.path)
            self.rows = [row for row in self.rows if int(str(row["epoch"])) < epoch]
            if damaged:
                aside = self.path.with_name(f"{self.path.name}.damaged")
                os.replace(self.path, aside)
                output.note(f"{self.path}: has lines that are no epochs; kept as {aside.name}, and written anew")
        self._write()

    def _write(self) -> None:
        """The whole file, so that one that was damaged or removed is whole again."""
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path, text.getvalue())


def _read(path: pathlib.Path) -> tuple[list[Row], bool]:
    """The rows of a log that may have passed through a spreadsheet or a crash, and whether it has other lines."""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    table = csv.DictReader((line.replace("\0", "") for line in lines), delimiter=delimiter)
    rows = [{name: row.get(name) for name in COLUMNS} for row in table if str(row.get("epoch")).isdecimal()]
    whole = "epoch" in (table.fieldnames or ()) and len(rows) == len(lines) - 1
    return rows, bool(lines) and not whole


def _tensorboard() -> "type[SummaryWriter]":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # beside an older protobuf or NumPy it is a TypeError or an AttributeError
        raise UserError(
            f"TensorBoard cannot be imported ({one_line(error)}); pip install tensorboard, or --no-tensorboard"
        ) from None
    return SummaryWriter


def _without_tensorboard(failure: threading.ExceptHookArgs) -> None:
    """In place of threading.excepthook: its writer's thread hands its exception over, and need not print it."""
    if not type(failure.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failure)
