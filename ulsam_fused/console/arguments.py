"""The argument parser of every command, and the options that several have. PyTorch is not imported."""

import argparse
import itertools
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn

from .._names import ATTENTION, MODELS
from .errors import UserError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the paragraphs of description and epilog to the screen; indented lines, the examples, stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_prose, block in itertools.groupby(text.splitlines(), key=lambda line: line[:1].strip() != ""):
            paragraph = list(block)
            lines += textwrap.wrap(" ".join(paragraph), width) if is_prose else paragraph
        return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options.

    A wrong command line is a UserError, which `main` prints as one line; argparse would print its usage and exit.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", _Formatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """argparse would pass over an output that cannot be written."""
        stream = file or sys.stderr
        if message and stream is not None:
            stream.write(message)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)"
    )


def add_model(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--model, --insert, --replace, --width and --attention, all None where they are not given."""
    group = parser.add_argument_group("a model (layers are numbered from 1, the stem)")
    group.add_argument("--model", choices=MODELS)
    group.add_argument(
        "--insert", action="append", metavar="LAYER=G", help="put a ULSAM of G subspaces after it; repeatable"
    )
    group.add_argument("--replace", action="append", metavar="LAYER=G", help="put a ULSAM in place of it; repeatable")
    group.add_argument("--width", type=float, metavar="W", help="multiplies the channels (default: 1.0)")
    group.add_argument("--attention", choices=ATTENTION, help="the paper's ULSAM, or its authors' (default: paper)")
    return group


def add_extent(parser: argparse.ArgumentParser) -> None:
    """`extent`, as `bench.cases.chosen` takes it."""
    extent = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "without the largest sizes, in seconds"),
        ("full", "every size in every combination, in minutes"),
    ):
        extent.add_argument(f"--{name}", dest="extent", action="store_const", const=name, help=text)
