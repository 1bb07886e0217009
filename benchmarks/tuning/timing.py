"""Times several calls in turn, so that a drifting clock moves all of them."""

import time

import torch

from ulsam_fused.bench import timing
from ulsam_fused.bench.accuracy import one_line


def in_turn(
    calls: dict[str, timing.Call], sets: int, seconds: float, device: torch.device
) -> tuple[dict[str, timing.Timing], dict[str, str]]:
    """The times of the calls, and the errors of those that fail. `seconds` are for each call.

    Every call has a graph over all input sets; a round replays each graph once, with cold caches.
    """
    if device.type != "cuda":
        return _interpreted(calls), {}
    sweeps, methods, errors = {}, {}, {}
    for name, call in calls.items():
        try:
            sweeps[name], methods[name] = timing.sweep(call, sets)
            timing.event_time(sweeps[name])
        except RuntimeError as error:
            sweeps.pop(name, None)
            errors[name] = f"failed: {one_line(error)}"
    samples: dict[str, list[float]] = {name: [] for name in sweeps}
    least, most = timing.ROUNDS
    end = time.monotonic() + seconds * len(sweeps)
    for i in range(most):
        if i >= least and time.monotonic() > end:
            break
        for name in list(sweeps) if i % 2 == 0 else list(reversed(sweeps)):  # nobody always follows the same one
            samples[name].append(timing.event_time(sweeps[name]) / sets)
    times = {name: timing.Timing.of(found, f"{methods[name]}, in turn") for name, found in samples.items()}
    return times, errors


def _interpreted(calls: dict[str, timing.Call]) -> dict[str, timing.Timing]:
    """Two calls of each, which only show that the script works."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for name, call in calls.items():
            start = time.perf_counter()
            call(0)
            samples[name].append((time.perf_counter() - start) * 1e6)
    return {name: timing.Timing.of(found, "wall clock of an interpreter") for name, found in samples.items()}
