"""Runs every candidate for one target, and compares its results with those of the chosen configuration.

    python -m benchmarks.tuning.agreement 256x512x14x14/g4 forward float16 nchw cuda [DONE ...]

Prints {"name", "error"} for each as it comes; those named DONE are left out. It runs as a process: compiling keeps one
core busy, and a kernel that destroys the CUDA context ends only this process.
"""

import json
import sys
from collections.abc import Iterator

import torch

from benchmarks.tuning.calls import Work, candidates
from benchmarks.tuning.configs import CHOSEN, Target
from ulsam_fused.bench.accuracy import Measure, Results, complaint, largest_error
from ulsam_fused.console.errors import one_line

PRECISE = 1e-4  # tolerance of float32 results: sums run in another order
EPSILONS = 4  # tolerance of results that are rounded to a narrower type
BROKEN = 3  # exit status


def verdicts(target: Target, device: torch.device, done: tuple[str, ...] = ()) -> Iterator[tuple[str, str | None]]:
    """Name and error of each candidate; None: it agrees with the chosen one. Ends where the chosen one has an error.

    Raises:
        SystemExit: this process can use the device no more.
    """
    work = None
    expected: Results = {}
    for name, candidate in candidates(target, device).items():
        if name in done:
            continue
        try:
            work = work or Work.make(target, device, sets=1)
            results = work.run(candidate, 0, attention=True)
            error = None if name == CHOSEN else disagreement(results, expected)
            error = error or disagreement(work.run(candidate, 0), results)  # the kernel that is timed writes no A
            _synchronize(device)
        except Exception as problem:  # whatever goes wrong goes into the candidate's row
            error = f"failed: {one_line(problem)}"
        yield name, error
        if name == CHOSEN:
            if error is not None:
                return
            expected = results
        try:
            _synchronize(device)
        except RuntimeError:
            sys.exit(BROKEN)


def disagreement(ours: Results, expected: Results) -> str | None:
    """What is wrong with ours. Each element is compared: one wrong element would vanish in the norm of a tensor."""
    return complaint(
        Measure(name, largest_error(t, expected[name]), max(PRECISE, EPSILONS * torch.finfo(t.dtype).eps))
        for name, t in ours.items()
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(words: list[str]) -> None:
    case, direction, dtype, layout, device, *done = words
    for name, error in verdicts(Target(case, direction, dtype, layout), torch.device(device), tuple(done)):
        print(json.dumps({"name": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
