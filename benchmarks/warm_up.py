"""Calls every kernel of one size once, in each type and memory format, so that Triton compiles it and keeps it on disk.

    python -m benchmarks.warm_up 256x512x14x14/g4 [cuda]

Compiling takes most of a first benchmark's time, and one process uses one core: `on_gpu.py` starts one per size.
"""

import itertools
import sys

import torch

from ulsam_fused.bench import calls
from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.providers import Sources, providers
from ulsam_fused.bench.workload import Workload
from ulsam_fused.console.devices import DTYPES


def main() -> None:
    case = sys.argv[1]
    device = torch.device(*sys.argv[2:] or ["cuda"])
    fused = [p for p in providers(["triton" if device.type == "cuda" else "torch"], compiled=False) if p.fused]
    for dtype, layout, direction in itertools.product(DTYPES, LAYOUTS, ("forward", "forward+backward", "train-norm")):
        workload = Workload(case, direction, dtype, layout, device)
        for batch in (None, 1):  # host time is taken at batch 1, which has its own launch configurations
            inputs = calls.inputs(workload, 1, batch)
            sources = Sources.make(inputs[0][0], workload.num_splits, workload.training)
            for provider in fused:
                if provider.takes_part(direction):
                    calls.call(provider.build(sources), inputs, direction)(0)


if __name__ == "__main__":
    main()
