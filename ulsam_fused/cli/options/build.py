"""The options of `ulsam-fused build`."""

import argparse
import pathlib

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
