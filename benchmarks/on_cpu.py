"""Measures the figures of a CPU in at most twelve minutes. Nothing else should run on the machine meanwhile.

    python -m benchmarks.on_cpu --output benchmarks/results
    python -m benchmarks.published.plots && python -m benchmarks.published.tables

Measures every provider at three sizes. At all sizes of sizes.py it measures the layer beside eager PyTorch,
torch.compile of the vectorised form, and a copy.
Writes cpu-<family>-torch<version>.json after every part, with all rows so far.
"""

import argparse
import pathlib
import sys
import time

from benchmarks import parts, sizes

DETAILED = ("8x512x14x14/g4", "8x160x7x7/g4", "4x32x112x112/g4")
COMPARED = ("eager", "vectorised+compile", "fused[cpp]", "fused[cpp]+norm")


def plan(seconds: float, quick: bool) -> list[parts.Part]:
    """Every provider at the detailed sizes; at the others those that the table of ratios needs."""
    common = f"--device cpu --backend cpp --backend torch --dtype float32 --seconds {seconds}".split()
    few = slice(1) if quick else slice(None)
    others = [case for case in sizes.small() if case not in DETAILED]
    detailed = ["--compile", *parts.repeated("--case", DETAILED[few])]
    compared = parts.repeated("--case", others[few]) + parts.repeated("--provider", COMPARED)
    return [parts.Part("detailed", (*common, *detailed)), parts.Part("compared", (*common, *compared))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the file of results")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for the logs (default: the same)")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each measurement (default: 0.6)")
    parser.add_argument("--limit", type=float, default=720, help="seconds for all together (default: 720)")
    parser.add_argument("--quick", action="store_true", help="one size for either table")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.limit
    folder, logs = parts.folders(arguments)
    path, outcome = parts.measure(plan(arguments.seconds, arguments.quick), folder, logs, end)
    return parts.summary(path, outcome)


if __name__ == "__main__":
    sys.exit(main())
