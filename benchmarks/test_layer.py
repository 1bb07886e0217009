"""Times of the layer under pytest-benchmark, to compare one commit with another on one machine; no time fails a test.

    pytest benchmarks --benchmark-enable --benchmark-autosave
    pytest benchmarks --benchmark-enable --benchmark-compare

What is timed, its inputs and its bytes are those of `ulsam-fused bench`, and so is the test that a provider computes
what it should. On a GPU the times are the device's, cold, and those of the host's way to it are apart, as wall clock.
"""

import functools
import time
from typing import Any

import pytest
import torch

import ulsam_fused as uf
from benchmarks.device_clock import DeviceClock
from ulsam_fused.bench import calls, report, timing
from ulsam_fused.bench.directions import DIRECTIONS
from ulsam_fused.bench.module_accuracy import Yardstick
from ulsam_fused.bench.providers import Provider, Sources, providers
from ulsam_fused.bench.workload import Setting
from ulsam_fused.console import devices

DEVICE = devices.pick(None)
CASES = ("8x512x14x14/g4", "8x160x7x7/g4", "4x32x112x112/g4")
BACKENDS = ["triton" if DEVICE.type == "cuda" else "torch"]
PROVIDERS = {provider.name: provider for provider in providers(BACKENDS, compiled=False)}
TIMED = [
    (direction, name)
    for direction, work in DIRECTIONS.items()
    for name in (work.ceiling, *(p.name for p in PROVIDERS.values() if p.takes_part(direction)))
    if direction != "backward"  # the second half of another
]
CLOCK = DeviceClock()
SECONDS = 0.2  # of the device, for each


@pytest.fixture
def noted(benchmark: Any) -> Any:
    """The benchmark, with what its time was measured on in its file."""
    heading = report.heading(DEVICE)
    benchmark.extra_info |= {key: heading[key] for key in ("device", "threads", "torch", "triton", "commit")}
    return benchmark


@functools.lru_cache(maxsize=1)  # parameters are ordered so that what shares inputs comes together
def prepared(setting: Setting) -> tuple[Sources, dict[str, Yardstick]]:
    torch.manual_seed(1)
    ((x, dy),) = calls.inputs(setting, 1)
    sources = Sources.make(x, setting.shape[4], setting.training)
    return sources, {form: Yardstick.make(getattr(sources, form), x, dy) for form in ("paper", "upstream")}


def checked(setting: Setting, provider: Provider) -> torch.nn.Module:
    """No time is taken of a provider that is wrong."""
    sources, yardsticks = prepared(setting)
    module = provider.build(sources)
    verdict = yardsticks[provider.form].verdict(module)
    assert verdict is None, verdict
    return module


@pytest.mark.benchmark(timer=CLOCK.seconds if DEVICE.type == "cuda" else time.perf_counter)
@pytest.mark.parametrize(("direction", "name"), TIMED, ids=[f"{name}-{direction}" for direction, name in TIMED])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace("/", "-"))
def test_time(noted: Any, case: str, direction: str, name: str) -> None:
    setting = Setting(case, direction, "float16" if DEVICE.type == "cuda" else "float32", "nchw", DEVICE)
    noted.group = str(setting)
    noted.extra_info["bytes"] = setting.floor
    sets = timing.sets_needed(setting.floor, DEVICE)
    if name in PROVIDERS:
        module = checked(setting, PROVIDERS[name])
        call = calls.call(module, calls.inputs(setting, sets), direction)
    else:
        call = calls.ceiling(calls.inputs(setting, sets), direction)
    if DEVICE.type == "cuda":
        CLOCK.measure(noted, call, sets, SECONDS)
    else:
        call(0)
        noted(call, 0)


def test_host_latency(noted: Any) -> None:
    """Wall clock of a call that the device does sooner than the host can ask for the next: batch 1, no gradients."""
    noted.group = "host"
    layer = uf.ULSAM(512, 4, device=DEVICE)
    x = torch.randn(1, 512, 14, 14, device=DEVICE)
    with torch.no_grad():
        y = noted(layer, x)
    assert y.shape == x.shape
