"""The options of `ulsam-fused check`."""

import argparse

from ..._names import FUSED
from ...console import arguments

_DESCRIPTION = """\
Compares every fused backend that can serve here with the reference in float64: the attention A, y - x, y, the
gradients, and whether a second run gives the same bits. Prints a line for each backend, and every failure.

Numbers are relative errors: dx-dy is what the layer adds to the gradient that passes through, dx(A) the gradient of x
through A alone. Each may be twice what eager PyTorch loses in the same type on the same inputs, plus rounding of the
type and of float32 sums. The error inf is a result that is missing or has another shape, or that overflowed; nan is
one that holds NaN; the tolerance inf says that eager PyTorch itself overflowed, so nothing can be judged.
"""
_EPILOG = """\
examples:
  ulsam-fused check
  ulsam-fused check --verbose --backend torch --device cpu
  TRITON_INTERPRET=1 ulsam-fused check     the Triton kernels on a CPU, few sizes

By default every size is compared in every type, formats, maps and activations by turns, within half a minute on two
cores. Exit code 1 when anything differs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--backend", action="append", choices=FUSED, help="only this one; repeatable")
    arguments.add_device(parser)
    arguments.add_extent(parser)
    parser.add_argument("--verbose", action="store_true", help='a line for each case; "!" is at what is above')
