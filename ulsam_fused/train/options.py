"""The options of `python -m ulsam_fused.train`; the defaults are a recipe for MobileNet on ImageNet."""

import argparse
import math
import pathlib
from collections.abc import Callable, Sequence

from .._names import READERS
from ..console import arguments
from ..console.arguments import Parser
from ..console.errors import UserError
from .dataset_folders import LAYOUTS

AMP = ("off", "float16", "bfloat16")

_DESCRIPTION = """\
Trains a MobileNet with ULSAM on folders of images. The defaults are the usual recipe of MobileNet-V2: SGD with momentum
0.9, learning rate 0.05 on a cosine for 150 epochs, weight decay 4e-5, batches of 256. docs/training.md has commands for
the paper's tables, and says what a checkpoint holds.
"""
_EPILOG = """\
examples:
  python -m ulsam_fused.train --data imagenet --output runs/v2 --insert 17=4 --amp bfloat16
  torchrun --nproc-per-node 8 -m ulsam_fused.train --data imagenet --output runs/v2 --batch-size 32 --insert 17=4
  python -m ulsam_fused.train --data food-101 --layout food101 --output runs/food --weights v2.pth --epochs 100

Run the same command again to continue after a stop.
"""


class Options(argparse.Namespace):
    """The values of one command line. `--help` says what each one does."""

    # model
    model: str
    insert: list[str] | None
    replace: list[str] | None
    width: float
    attention: str
    weights: pathlib.Path | None
    # data
    data: pathlib.Path
    layout: str
    reader: str
    size: int
    resize: int
    max_broken: float
    # recipe
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    schedule: str
    step_epochs: int
    warmup: int
    momentum: float
    weight_decay: float
    no_norm_decay: bool
    label_smoothing: float
    ema: float | None
    seed: int
    # machine
    device: str | None
    amp: str
    channels_last: bool
    sync_bn: bool
    workers: int
    compile: bool
    deterministic: bool
    # output
    output: pathlib.Path
    resume: str
    print_every: int
    limit_steps: int | None
    no_tensorboard: bool


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line, sys.argv[1:] by default.

    Raises:
        UserError: an unknown option, or a value out of range.
    """
    parser = Parser(prog="python -m ulsam_fused.train", description=_DESCRIPTION, epilog=_EPILOG)
    arguments.add_model(parser).add_argument(
        "--weights", type=pathlib.Path, metavar="FILE", help="start from the weights in FILE (torchvision's names)"
    )
    parser.set_defaults(model="mobilenet_v2", width=1.0, attention="paper")
    _add_data(parser.add_argument_group("data"))
    _add_recipe(parser.add_argument_group("recipe"))
    _add_machine(parser.add_argument_group("machine"))
    _add_output(parser.add_argument_group("output"))
    args = parser.parse_args(argv, namespace=Options())
    if args.resize < args.size:
        raise UserError(f"--resize must not be below --size {args.size}, got {args.resize}")
    return args


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR")
    group.add_argument("--layout", choices=LAYOUTS, default="imagefolder", help="of DIR (default: %(default)s)")
    group.add_argument(
        "--reader", choices=READERS, default="pillow", help="what cuts the training crops (default: %(default)s)"
    )
    group.add_argument("--size", type=_whole(8), default=224, metavar="PX", help="of a crop (default: %(default)s)")
    group.add_argument(
        "--resize", type=_whole(8), default=256, metavar="PX",
        help="test images are scaled to this shorter side, then cropped (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-broken", type=_number(0, 1), default=0.001, metavar="SHARE",
        help="stop when more than this share of a set is missing or unreadable (default: %(default)s)",
    )  # fmt: skip


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=_whole(1), default=150, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--batch-size", type=_whole(1), default=256, metavar="N", help="of one process (default: %(default)s)"
    )
    group.add_argument("--optimizer", choices=("sgd", "rmsprop"), default="sgd", help="default: %(default)s")
    group.add_argument("--lr", type=_number(0), default=0.05, help="highest learning rate (default: %(default)s)")
    group.add_argument("--schedule", choices=("cosine", "step"), default="cosine", help="default: %(default)s")
    group.add_argument(
        "--step-epochs", type=_whole(1), default=30, metavar="N", help="--schedule step: a tenth after N epochs (30)"
    )
    group.add_argument(
        "--warmup", type=_whole(0), default=0, metavar="EPOCHS", help="rise linearly (default: %(default)s)"
    )
    group.add_argument("--momentum", type=_number(0, 1), default=0.9, help="default: %(default)s")
    group.add_argument("--weight-decay", type=_number(0), default=4e-5, help="default: %(default)s")
    group.add_argument("--no-norm-decay", action="store_true", help="no weight decay on norms and biases")
    group.add_argument("--label-smoothing", type=_number(0, 1), default=0.0, help="default: %(default)s")
    group.add_argument("--ema", type=_number(0, 1), metavar="DECAY", help="also evaluate an average of the weights")
    group.add_argument("--seed", type=_whole(0), default=0, help="default: %(default)s")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    group.add_argument("--amp", choices=AMP, default="off", help="mixed precision (default: %(default)s)")
    group.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format")
    group.add_argument("--sync-bn", action="store_true", help="share batch statistics between processes")
    group.add_argument(
        "--workers", type=_whole(0), default=8, metavar="N", help="that read images (default: %(default)s)"
    )
    group.add_argument("--compile", action="store_true", help="torch.compile")
    group.add_argument("--deterministic", action="store_true", help="the same bits from run to run, also on a GPU")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="checkpoints and logs")
    group.add_argument(
        "--resume", default="auto", metavar="auto|none|FILE",
        help="auto: from the last checkpoint in --output (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--print-every", type=_whole(1), default=50, metavar="STEPS", help="default: %(default)s")
    group.add_argument("--limit-steps", type=_whole(1), metavar="N", help="for a trial: end each epoch after N steps")
    group.add_argument("--no-tensorboard", action="store_true", help="write log.csv only")


def _whole(lowest: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {value}")
        return value

    return whole


def _number(lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not (lowest <= value <= highest and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be from {lowest:g} to {highest:g}, got {text}")
        return value

    return number
