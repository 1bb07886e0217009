"""Which checkpoint a training continues from, and whether that is a checkpoint of this training."""

import pathlib
from collections.abc import Callable

from ..console import model_options
from ..console.errors import UserError
from . import checkpoint
from .checkpoint import Checkpoint
from .dataset_folders import Data
from .options import Options
from .processes import Processes

OPTIONS = (
    "model", "width", "attention", "layout", "reader", "size", "resize", "epochs", "optimizer", "lr", "schedule",
    "step_epochs", "warmup", "momentum", "weight_decay", "no_norm_decay", "label_smoothing", "ema", "seed",
    "limit_steps",
)  # fmt: skip
"""A checkpoint with other values of these belongs to another training."""


def identity(args: Options, data: Data, world: int) -> dict[str, object]:
    """What makes a training this one: options and data.

    Raises:
        UserError: --insert or --replace is malformed.
    """
    return {name: getattr(args, name) for name in OPTIONS} | {
        "insert": model_options.places("insert", args.insert),
        "replace": model_options.places("replace", args.replace),
        "batch size of all processes": args.batch_size * world,
        "training images": len(data.train),
        "classes": list(data.classes),
    }


def find(
    args: Options, processes: Processes, identity: dict[str, object], notice: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint that --resume asks for; None to start anew. Only the first process reads --output.

    Raises:
        UserError: in every process, whatever is wrong in the first: --output cannot be made or holds a training
            already; the checkpoint is damaged or belongs to another training.
    """
    found, problem = None, ""
    if processes.first:
        try:
            found = _find(args, identity, notice)
        except (UserError, OSError) as error:
            problem = str(error)
    found, problem = processes.share((found, problem))
    if problem:
        raise UserError(problem)
    return found


def _find(args: Options, identity: dict[str, object], notice: Callable[[str], None]) -> Checkpoint | None:
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: cannot be made: {error}") from None
    if args.resume == "none":
        if any((args.output / name).exists() for name in (checkpoint.LAST, checkpoint.PREVIOUS)):
            raise UserError(f"--output {args.output} already holds a training; --resume auto continues it")
        return None
    if args.resume == "auto":
        found = checkpoint.latest(args.output, lambda line: notice(f"resume: {line}"))
    else:
        path = pathlib.Path(args.resume)
        found = Checkpoint(path, checkpoint.load(path))
    if found is not None:
        checkpoint.check_identity(found.path, found.content["identity"], identity)
    return found
