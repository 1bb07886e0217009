"""pytest-benchmark by a GPU's clock.

pytest-benchmark reads a timer before and after each round. This timer moves only by the time per call that the device
spends on the round, as CUDA events measure it. Use it with `benchmark.pedantic`: `benchmark(function)` first waits for
its timer to move, and would wait forever.
"""

import math
from typing import Any

from ulsam_fused.bench import timing


class DeviceClock:
    """A timer, `seconds`, and a way to measure a call by it."""

    def __init__(self) -> None:
        self._now = 0.0

    def seconds(self) -> float:
        return self._now

    def measure(self, benchmark: Any, call: timing.Call, sets: int, most_seconds: float) -> None:
        """A round is one sweep over all input sets, cold as in `bench`; as many rounds as fit in the time."""
        run, method = timing.sweep(call, sets)
        benchmark.extra_info["method"] = method
        once = max(timing.event_time(run) for _ in range(3))  # warms up, too

        def one_round() -> None:
            self._now += timing.event_time(run, sets) * 1e-6

        least, most = timing.ROUNDS
        rounds = min(most, max(least, math.ceil(most_seconds * 1e6 / max(once, 1.0))))
        benchmark.pedantic(one_round, rounds=rounds, iterations=1, warmup_rounds=0)
