"""The options of `ulsam-fused bench`."""

import argparse
import pathlib

from ..._names import DTYPES, FUSED, LAYOUTS
from ...bench.directions import DIRECTIONS
from ...console import arguments

_DESCRIPTION = """\
Times the layer as the authors wrote it (eager), the paper's formula in plain PyTorch, and the fused operator, at the
places where the paper puts it. Every provider is first compared with float64: one that is wrong gets no time.
Directions: "forward" is inference without gradients; "forward+backward" has gradients of x and all parameters, and
"backward" is the second half of that alone; "train-norm" is forward and backward of the authors' form, fused or not,
with the batch's statistics.
"""
_EPILOG = """\
examples:
  ulsam-fused bench --quick
  ulsam-fused bench --case 8x512x14x14/g4 --direction forward --layout channels_last
  ulsam-fused bench --case upstream-eval --case upstream-train
  ulsam-fused bench --model mobilenet_v2 --insert 17=4        images per second of the whole network
  ulsam-fused bench --compile --dtype float16 --json result.json --plot result.png

upstream-eval and upstream-train compare the authors' module, with its norms, in eager mode, under torch.compile and
fused: forward in eval mode, and train-norm.

Triton's interpreter is never timed unless --backend triton asks for it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "--case", action="append", metavar="NxCxHxW/gK",
        help="this size instead, or upstream-eval or upstream-train; repeatable",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="of everything (default: float16 on a GPU, else float32)")
    parser.add_argument(
        "--layout", action="append", choices=LAYOUTS, help="memory format of x (default: nchw); repeatable"
    )
    parser.add_argument(
        "--direction", action="append", choices=DIRECTIONS, help="only this one (default: all but backward); repeatable"
    )
    parser.add_argument("--provider", action="append", metavar="NAME", help="only this line of the table; repeatable")
    parser.add_argument("--backend", action="append", choices=FUSED, help="only this fused one; repeatable")
    arguments.add_device(parser)
    parser.add_argument("--compile", action="store_true", help="add torch.compile of eager and of the vectorised form")
    parser.add_argument("--onnx", action="store_true", help="add ONNX Runtime on a CPU, in the forward; extra [onnx]")
    parser.add_argument("--quick", action="store_true", help="two sizes, short measurements")
    parser.add_argument("--seconds", type=float, metavar="S", help="per measurement (default: 1, or 0.3 with --quick)")
    parser.add_argument("--verbose", action="store_true", help="print every figure, and notes on what they mean")
    parser.add_argument(
        "--json", metavar="FILE", type=pathlib.Path, help="write all rows to this file; - is standard output"
    )
    parser.add_argument("--plot", metavar="FILE.png", type=pathlib.Path, help="draw them; needs the extra [plot]")
    group = arguments.add_model(parser)
    group.add_argument("--batch", type=int, metavar="N", help="images (default: 256 on a GPU, 8 on a CPU)")
    group.add_argument("--size", type=int, metavar="PX", help="side of the input (default: 224)")
