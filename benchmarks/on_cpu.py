"""Measures the figures of a CPU in at most fifteen minutes. Nothing else should run on the machine meanwhile.

    python -m benchmarks.on_cpu --output benchmarks/results
    OMP_NUM_THREADS=1 python -m benchmarks.on_cpu --output benchmarks/results
    python -m benchmarks.published.plots && python -m benchmarks.published.tables

Measures every provider at three sizes, ONNX Runtime too where it is installed (extra [onnx]). At all sizes of sizes.py
it measures the layer beside eager PyTorch, torch.compile of the vectorised form, and a copy; at four sizes the same in
bfloat16 and in channels_last. With one thread it measures the layer, torch.compile and a copy at those four sizes.
Writes cpu-<family>-torch<version>.json after every part, with all rows so far; the name ends in -1-thread with one.
"""

import argparse
import importlib.util
import itertools
import pathlib
import sys
import time

import torch

from benchmarks import parts, sizes

DETAILED = ("8x512x14x14/g4", "8x160x7x7/g4", "4x32x112x112/g4")
COMPARED = ("eager", "vectorised+compile", "fused[cpp]", "fused[cpp]+norm")
FEW = ("8x512x14x14/g4", "8x1024x7x7/g4", "8x128x28x28/g4", "8x64x56x56/g1")


def plan(seconds: float, quick: bool, threads: int) -> list[parts.Part]:
    """Every provider at the detailed sizes; at the others those that the table of ratios needs."""
    few = slice(1) if quick else slice(None)

    def part(name: str, cases: list[str], *options: str, dtype: str = "float32", layout: str = "nchw") -> parts.Part:
        common = f"--device cpu --backend cpp --backend torch --dtype {dtype} --layout {layout} --seconds {seconds}"
        return parts.Part(name, (*common.split(), *parts.repeated("--case", cases), *options))

    compared = parts.repeated("--provider", COMPARED)
    if threads == 1:
        return [part("one-thread", list(FEW[few]), *compared)]
    onnx = ["--onnx"] if importlib.util.find_spec("onnxruntime") else []
    others = [case for case in sizes.small() if case not in DETAILED]
    planned = [part("detailed", list(DETAILED[few]), "--compile", *onnx), part("compared", others[few], *compared)]
    for dtype, layout in itertools.product(("float32", "bfloat16"), ("nchw", "channels_last")):
        if (dtype, layout) != ("float32", "nchw"):
            planned.append(part(f"{dtype}-{layout}", list(FEW[few]), *compared, dtype=dtype, layout=layout))
    return planned


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the file of results")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for the logs (default: the same)")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each measurement (default: 0.6)")
    parser.add_argument("--limit", type=float, default=900, help="seconds for all together (default: 900)")
    parser.add_argument("--quick", action="store_true", help="one size for either table")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.limit
    folder, logs = parts.folders(arguments)
    planned = plan(arguments.seconds, arguments.quick, torch.get_num_threads())
    path, outcome = parts.measure(planned, folder, logs, end)
    return parts.summary(path, outcome)


if __name__ == "__main__":
    sys.exit(main())
