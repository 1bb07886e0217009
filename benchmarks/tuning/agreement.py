"""Compiles and runs the candidates of one group, and compares each with the chosen configuration.

    python -m benchmarks.tuning.agreement 256x512x14x14/g4 forward float16 nchw cuda [DONE ...]

Prints {"name", "error"} for each as it comes, but for those named as done. A process of its own: compiling keeps one
core busy, and a kernel that destroys the CUDA context takes nothing with it but this process.
"""

import json
import sys
from collections.abc import Iterator

import torch

from benchmarks.tuning.calls import Results, Work, candidates
from benchmarks.tuning.configs import CHOSEN, Group

PRECISE = 1e-4  # of what is float32: sums in another order
EPSILONS = 4  # of what is rounded to a narrower type
BROKEN = 3  # exit status


def verdicts(group: Group, device: torch.device, done: tuple[str, ...] = ()) -> Iterator[tuple[str, str | None]]:
    """Name and error, None where it computes the same as the chosen one; with an error of that nothing follows.

    Raises:
        SystemExit: the device is of no more use to this process.
    """
    work = None
    expected: Results = {}
    for name, candidate in candidates(group, device).items():
        if name in done:
            continue
        try:
            work = work or Work.make(group, device, sets=1)
            results = work.run(candidate, 0, attention=True)
            error = None if name == CHOSEN else difference(results, expected)
            error = error or difference(work.run(candidate, 0), results)  # the kernel that is timed writes no A
            _synchronize(device)
        except Exception as problem:  # whatever it does wrong belongs into its row
            error = f"failed: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
        yield name, error
        if name == CHOSEN:
            if error is not None:
                return
            expected = results
        try:
            _synchronize(device)
        except RuntimeError:
            sys.exit(BROKEN)


def difference(ours: Results, expected: Results) -> str | None:
    """What is wrong with ours; None where each element is within `tolerance` of itself and of the typical one."""
    for name, t in ours.items():
        right = expected[name].float()
        allowed = tolerance(t.dtype) * (right.abs() + right.square().mean().sqrt())
        off = (t.float() - right).abs()
        if not bool((off <= allowed).all()):  # NaN is not, either
            return f"wrong: {name} is off by up to {float((off / allowed).max()):.1e} of what is allowed"
    return None


def tolerance(dtype: torch.dtype) -> float:
    """Relative."""
    return max(PRECISE, EPSILONS * torch.finfo(dtype).eps)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(words: list[str]) -> None:
    case, direction, dtype, layout, device, *done = words
    for name, error in verdicts(Group(case, direction, dtype, layout), torch.device(device), tuple(done)):
        print(json.dumps({"name": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
