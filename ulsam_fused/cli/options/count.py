"""The options of `ulsam-fused count`."""

import argparse
import pathlib

from ...console import arguments

_DESCRIPTION = """\
Builds every model of the paper's tables and counts it beside what the authors published. With --model, counts that
model instead, and what ULSAM saves or costs in it. Nothing is run and no weights are made: counting needs shapes only.
"""
_EPILOG = """\
examples:
  ulsam-fused count
  ulsam-fused count --modules               ULSAM beside non-local, A²-Net, SE, BAM and CBAM
  ulsam-fused count --model mobilenet_v2 --insert 17=4
  ulsam-fused count --model mobilenet_v2 --replace 14=8 --replace 17=8 --width 0.75
  ulsam-fused count --markdown              the table of README

Exit code 1 when a published figure without a known reason differs from ours.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--modules", action="store_true", help="attention modules at 512x14x14 instead")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--json", metavar="FILE", type=pathlib.Path, help="write exact counts to this file; - is standard output"
    )
    group = arguments.add_model(parser)
    group.add_argument("--size", type=int, metavar="PX", help="side of the input (default: 224)")
