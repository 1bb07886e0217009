"""How `bench` takes times: after a warm-up, the median and the 20th and 80th percentiles.

On a GPU: device time of CUDA graphs. A graph makes one call with each of many input sets, 200 MB together, so every
call finds a cold cache. The host's time is taken apart, at batch 1. On a CPU: wall clock of runs of 10 ms, all
providers in turn, round after round, on one input that may stay in the cache. Memory that is freed stays with the
process.
"""

import ctypes
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[int], object]  # called with the number of the input set

COLD_BYTES = 200e6
MOST_SETS = 256
ROUNDS = (5, 1000)  # at least and at most


@dataclass(frozen=True)
class Timing:
    """Microseconds per call."""

    p50: float
    p20: float
    p80: float
    method: str

    @classmethod
    def of(cls, samples: list[float], method: str) -> "Timing":
        cuts = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), cuts[1], cuts[7], method)


def sets_needed(bytes_per_set: int, device: torch.device) -> int:
    """How many input sets to make: one on a CPU, on a GPU enough to push each other out of its cache."""
    if device.type != "cuda":
        return 1
    return min(MOST_SETS, max(2, math.ceil(COLD_BYTES / bytes_per_set)))


def wall_clock(calls: dict[str, Call], seconds: float) -> dict[str, Timing]:
    """CPU times of all calls in interleaved rounds, `seconds` for each of them."""
    keep_memory()
    samplers = {name: functools.partial(_warm_wall, call, _calls_per_sample(call)) for name, call in calls.items()}
    samples = in_turn(samplers, seconds)
    return {name: Timing.of(found, "wall clock, interleaved") for name, found in samples.items()}


@functools.lru_cache(maxsize=1)
def keep_memory() -> None:
    """Have glibc keep what is freed, up to 32 MB a tensor.

    Else it returns some results to the system, by what lies behind them, and a later call waits for a page fault per
    4 KB: up to a millisecond, in any operator.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_threshold, trim_threshold = -3, -1
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 2**31 - 1)


def in_turn(samplers: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """The samples of each, round after round, `seconds` for each of them."""
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    end = time.perf_counter() + seconds * len(samplers)
    for i in range(ROUNDS[1]):
        if i >= ROUNDS[0] and time.perf_counter() > end:
            break
        for name in samples if i % 2 == 0 else reversed(samples):  # nobody always follows the same one
            samples[name].append(samplers[name]())
    return samples


def _calls_per_sample(call: Call) -> int:
    """As many as last some 10 ms. Finding out warms up, too."""
    call(0)
    once = min(wall(call, 1) for _ in range(3))
    return max(1, min(1000, math.ceil(10_000 / max(once, 1e-3))))


def _warm_wall(call: Call, count: int) -> float:
    call(0)  # not counted: it finds the caches and the memory pool as another provider left them
    return wall(call, count)


def wall(call: Call, count: int) -> float:
    """Microseconds per call, of so many."""
    start = time.perf_counter()
    for _ in range(count):
        call(0)
    return (time.perf_counter() - start) * 1e6 / count


def device_time(call: Call, sets: int, seconds: float) -> Timing:
    """GPU time of one call, cold."""
    run, method = sweep(call, sets)
    for _ in range(3):
        run()
    samples = in_turn({"": functools.partial(event_time, run, sets)}, seconds)
    return Timing.of(samples[""], method)


def sweep(call: Call, sets: int) -> tuple[Callable[[], object], str]:
    """A function that calls once with every input set, and how: a graph's replay, or plain calls without a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(3):
            call(i % sets)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for i in range(sets):
                call(i)
    except RuntimeError:
        torch.cuda.synchronize()
        return lambda: [call(i) for i in range(sets)], "events, host included"
    return graph.replay, "graph replay, cold"


def event_time(run: Callable[[], object], calls: int = 1) -> float:
    """Microseconds that the device spends on each of so many calls."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1e3 / calls


def host_time(call: Call, seconds: float, count: int = 10) -> float:
    """Microseconds that the host spends on a call with little work for the device; from at most 1000 calls."""
    for _ in range(10):
        call(0)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 5 or (len(found) * count < 1000 and time.perf_counter() < end):
        torch.cuda.synchronize()
        found.append(wall(call, count))
    torch.cuda.synchronize()
    return statistics.median(found)


def peak_memory(call: Call) -> float:
    """MB that a call needs on the device beyond what is there already."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
