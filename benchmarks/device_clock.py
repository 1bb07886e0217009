"""pytest-benchmark by a GPU's clock: its rounds, statistics, files and comparisons, of times that events have taken.

pytest-benchmark asks a timer before and after each round. Here the timer stands still but for the time that the device
spends on the round, per call. To be used with `pedantic`: `benchmark(function)` first looks how fine its timer is, and
would wait forever.
"""

import math
from typing import Any

from ulsam_fused.bench import timing


class DeviceClock:
    """Its `seconds` is the timer."""

    def __init__(self) -> None:
        self._now = 0.0

    def seconds(self) -> float:
        return self._now

    def measure(self, benchmark: Any, call: timing.Call, sets: int, most_seconds: float) -> None:
        """A round is one sweep over all input sets, cold as in `bench`; so many rounds as fit in the time."""
        run, method = timing.sweep(call, sets)
        benchmark.extra_info["method"] = method
        once = max(timing.event_time(run) for _ in range(3))  # warms up, too

        def one_round() -> None:
            self._now += timing.event_time(run) * 1e-6 / sets

        least, most = timing.ROUNDS
        rounds = min(most, max(least, math.ceil(most_seconds * 1e6 / max(once, 1.0))))
        benchmark.pedantic(one_round, rounds=rounds, iterations=1, warmup_rounds=0)
