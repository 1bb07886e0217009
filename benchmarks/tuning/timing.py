"""Times several calls in turn, so that a drifting clock moves all of them."""

import functools

import torch

from ulsam_fused.bench import timing
from ulsam_fused.bench.timing import Timing
from ulsam_fused.console.errors import one_line


def in_turn(
    calls: dict[str, timing.Call], sets: int, seconds: float, device: torch.device
) -> tuple[dict[str, Timing], dict[str, str]]:
    """The times of the calls, and the errors of those that fail. `seconds` are for each call.

    Every call has a graph over all input sets; a round replays each graph once, with cold caches.
    """
    if device.type != "cuda":  # two calls of each only show that the script works
        walls = {name: [timing.wall(call, 1) for _ in range(2)] for name, call in calls.items()}
        return {name: Timing.of(found, "wall clock of an interpreter") for name, found in walls.items()}, {}
    samplers, methods, errors = {}, {}, {}
    for name, call in calls.items():
        try:
            run, methods[name] = timing.sweep(call, sets)
            timing.event_time(run)
            samplers[name] = functools.partial(timing.event_time, run, sets)
        except RuntimeError as error:
            errors[name] = f"failed: {one_line(error)}"
    samples = timing.in_turn(samplers, seconds)
    return {name: Timing.of(found, f"{methods[name]}, in turn") for name, found in samples.items()}, errors
