"""The options of `ulsam-fused accuracy`."""

import argparse
import pathlib

from ..._names import FUSED
from ...console import arguments

_DESCRIPTION = """\
Computes sizes, types, memory formats, nearly uniform and peaked maps in float64, by every fused backend that can serve
here and by eager PyTorch, and prints how far both are from float64. Quantities are A, y - x, y, the gradients of all
parameters, dx-dy (what the layer adds to the gradient that passes through) and dx(A) (the gradient of x through A).
An error is relative, ||q - float64|| / ||float64||, in ulp: epsilons of the result's type. The line of a backend says
where it is farthest behind eager PyTorch in the same type.
"""
_EPILOG = """\
examples:
  ulsam-fused accuracy --quick
  ulsam-fused accuracy --backend cpp --verbose --json accuracy.json
  TRITON_INTERPRET=1 ulsam-fused accuracy --backend triton     the Triton kernels on a CPU
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--backend", action="append", choices=FUSED, help="only this one; repeatable")
    arguments.add_device(parser)
    arguments.add_extent(parser)
    parser.add_argument("--verbose", action="store_true", help="print every case and quantity")
    parser.add_argument(
        "--json", metavar="FILE", type=pathlib.Path, help="write all rows to this file; - is standard output"
    )
