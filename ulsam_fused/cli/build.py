"""`ulsam-fused build`: compiles the C++ backend ahead of its first use, for images and machines without a compiler."""

import argparse
import pathlib
import time

from ..console.errors import UserError
from ..kernels.cpu import build

_DESCRIPTION = """\
Compiles the C++ kernels for this machine's CPU, PyTorch and compiler, unless that has been done. A call with
backend="cpp" does the same on its first use. Prints where the library is.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.epilog = (
        "examples:\n  ulsam-fused build\n"
        "  ulsam-fused build --into /opt/ulsam     then set ULSAM_FUSED_CACHE=/opt/ulsam"
    )
    parser.add_argument("--into", type=pathlib.Path, metavar="FOLDER", help="this folder (default: the user's cache)")


def run(args: argparse.Namespace) -> int:
    start = time.monotonic()
    try:
        library = build.build(args.into)
    except build.BuildError as error:
        raise UserError(str(error)) from None
    print(f"C++ kernels: {library} ({time.monotonic() - start:.0f} s)")
    return 0
