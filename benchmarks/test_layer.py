"""Times of the layer under pytest-benchmark, to compare commits on one machine. No time fails a test.

    pytest benchmarks --benchmark-enable --benchmark-autosave
    pytest benchmarks --benchmark-enable --benchmark-compare

The calls, their inputs and bytes, and the test that a provider is right are those of `ulsam-fused bench`. On a GPU the
times are the device's, with cold caches; the host's time is taken apart, by wall clock.
"""

import functools
import time
from typing import Any

import pytest
import torch

import ulsam_fused as uf
from benchmarks.device_clock import DeviceClock
from ulsam_fused.bench import calls, rows, timing
from ulsam_fused.bench.directions import DIRECTIONS
from ulsam_fused.bench.module_accuracy import Expected
from ulsam_fused.bench.providers import Provider, Sources, providers
from ulsam_fused.bench.workload import Workload
from ulsam_fused.console import devices

DEVICE = devices.pick(None)
CASES = ("8x512x14x14/g4", "8x160x7x7/g4", "4x32x112x112/g4")
BACKENDS = ["triton" if DEVICE.type == "cuda" else "torch"]
PROVIDERS = {provider.name: provider for provider in providers(BACKENDS, compiled=False)}
TIMED = [
    (direction, name)
    for direction, work in DIRECTIONS.items()
    for name in (work.ceiling, *(p.name for p in PROVIDERS.values() if p.takes_part(direction)))
    if direction != "backward"  # the second half of forward+backward
]
CLOCK = DeviceClock()
SECONDS = 0.2  # of the device, for each


@pytest.fixture
def noted(benchmark: Any) -> Any:
    """The benchmark, with what its time was measured on in its file."""
    benchmark.extra_info |= {key: value for key, value in rows.heading(DEVICE).items() if key != "date"}
    return benchmark


@functools.lru_cache(maxsize=1)  # tests that share inputs follow one another
def prepared(workload: Workload) -> tuple[Sources, dict[str, Expected]]:
    torch.manual_seed(1)
    ((x, dy),) = calls.inputs(workload, 1)
    sources = Sources.make(x, workload.num_splits, workload.training)
    return sources, {form: Expected.of(getattr(sources, form), x, dy) for form in ("paper", "upstream")}


def checked(workload: Workload, provider: Provider) -> torch.nn.Module:
    """The provider's module; a wrong one fails the test before it is timed."""
    sources, expected = prepared(workload)
    module = provider.build(sources)
    problem = expected[provider.form].problem_with(module)
    assert problem is None, problem
    return module


@pytest.mark.benchmark(timer=CLOCK.seconds if DEVICE.type == "cuda" else time.perf_counter)
@pytest.mark.parametrize(("direction", "name"), TIMED, ids=[f"{name}-{direction}" for direction, name in TIMED])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace("/", "-"))
def test_time(noted: Any, case: str, direction: str, name: str) -> None:
    workload = Workload(case, direction, "float16" if DEVICE.type == "cuda" else "float32", "nchw", DEVICE)
    noted.group = str(workload)
    noted.extra_info["bytes"] = workload.floor
    sets = timing.sets_needed(workload.floor, DEVICE)
    if name in PROVIDERS:
        module = checked(workload, PROVIDERS[name])
        call = calls.call(module, calls.inputs(workload, sets), direction)
    else:
        call = calls.ceiling(calls.inputs(workload, sets), direction)
    if DEVICE.type == "cuda":
        CLOCK.measure(noted, call, sets, SECONDS)
    else:
        call(0)
        noted(call, 0)


def test_host_latency(noted: Any) -> None:
    """Wall clock at batch 1, without gradients: the device is done before the host can ask for the next call."""
    noted.group = "host"
    layer = uf.ULSAM(512, 4, device=DEVICE)
    x = torch.randn(1, 512, 14, 14, device=DEVICE)
    with torch.no_grad():
        y = noted(layer, x)
    assert y.shape == x.shape
