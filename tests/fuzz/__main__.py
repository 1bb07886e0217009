"""`make fuzz MINUTES=n`: random calls against float64 until the time is over. Failures, made small, become tests.

    python -m tests.fuzz --minutes 10 --backend cpp --seed 3

Exit code 1 where something failed. A failure is written to examples.jsonl beside this file, which `make test` replays.
"""

import argparse
import logging
import os
import sys
import time

import hypothesis
import torch
from hypothesis import HealthCheck, given, settings

from tests.fuzz.calls import TINY, Call, calls, save
from tests.fuzz.judge import judge
from tests.helpers import interpreter

BATCH = 1000  # calls between two lines of progress; hypothesis draws each batch with a seed of its own
ENOUGH = 10  # failures
SHRINKING = 60  # seconds in which a failing call is made smaller


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--backend", action="append", choices=("cpp", "torch", "triton"), help="repeatable; by turns")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="where the random numbers begin")
    args = parser.parse_args()
    backends = args.backend or ["cpp", "torch", "triton"]
    if "triton" in backends and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
        interpreter.mend()
        interpreter.hasten()
    torch.set_num_threads(1)
    torch._logging.set_logs(dynamo=logging.ERROR)  # a norm that is called may break a graph, which is told at length
    end = time.monotonic() + 60 * args.minutes
    judged, failed = 0, 0
    print(f"seed {args.seed}, torch {torch.__version__}", flush=True)
    while time.monotonic() < end and failed < ENOUGH:
        backend = backends[args.seed % len(backends)]
        done, failure = _batch(backend, args.seed, end)
        judged += done
        args.seed += 1
        if failure is not None:
            failed += 1
            save(failure)
            print(f"FAILED, and saved: {failure}", flush=True)
        left = max(end - time.monotonic(), 0) / 60
        print(f"{judged:,} calls, {failed} failed, {left:.0f} minutes left ({backend})", flush=True)
    return 1 if failed else 0


def _batch(backend: str, seed: int, end: float) -> tuple[int, Call | None]:
    """How many calls were judged, and the smallest that failed."""
    judged = 0
    failed: list[tuple[float, Call, str]] = []
    limits = TINY if backend == "triton" else {}

    @hypothesis.seed(seed)
    @settings(
        max_examples=BATCH // 20 if backend == "triton" else BATCH, database=None, derandomize=False, deadline=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(call=calls(backend, **limits))
    def run(call: Call) -> None:
        nonlocal judged
        now = time.monotonic()
        if now > end or (failed and now > failed[0][0] + SHRINKING):
            return
        judged += 1
        try:
            judge(call)
        except Exception as error:
            failed.append((now, call, f"{type(error).__name__}: {error}"))
            raise

    try:
        run()
    except Exception:  # whatever a call raises that is allowed is a failure
        if not failed:
            raise
        _, smallest, message = min(failed, key=lambda found: found[1].size)
        print(message[:2000], flush=True)
        return judged, smallest
    return judged, None


if __name__ == "__main__":
    sys.exit(main())
