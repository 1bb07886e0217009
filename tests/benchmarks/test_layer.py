"""benchmarks/test_layer.py under pytest-benchmark: files, comparisons, and a GPU's clock. No test looks at a time."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.processes import ROOT

# in the workers of pytest-xdist, which this variable tells of, pytest-benchmark keeps no files
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def benchmarks(folder: pathlib.Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-enable"]
    command += ["--benchmark-max-time=0.001", "--benchmark-min-rounds=1", f"--benchmark-storage=file://{folder}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def saved(folder: pathlib.Path) -> dict[str, dict]:
    (file,) = folder.rglob("*.json")
    return {found["name"]: found for found in json.loads(file.read_text())["benchmarks"]}


def test_times_are_kept_and_compared(tmp_path: pathlib.Path) -> None:
    layer = str(ROOT / "benchmarks" / "test_layer.py")
    printed = benchmarks(tmp_path, layer, "-k", "8x160x7x7 or host", "--benchmark-autosave")
    assert "15 passed" in printed
    found = saved(tmp_path)
    assert len(found) == 15
    for benchmark in found.values():
        assert {"device", "torch", "triton", "commit"} <= set(benchmark["extra_info"])
    names = {(b["group"], b["params"]["name"]) for b in found.values() if b["params"]}
    groups = {f"8x160x7x7/g4 {direction} float32 nchw" for direction in ("forward", "forward+backward", "train-norm")}
    assert {group for group, _ in names} == groups
    assert ("8x160x7x7/g4 train-norm float32 nchw", "fused[torch]+norm") in names
    printed = benchmarks(tmp_path, layer, "-k", "host", "--benchmark-compare")
    assert "test_host_latency (NOW)" in printed
    assert "test_host_latency (0001_" in printed


ON_A_GPU = """
import pytest
from benchmarks.device_clock import DeviceClock
from tests.helpers.fake_gpu import FakeGpu

CLOCK = DeviceClock()

@pytest.mark.benchmark(timer=CLOCK.seconds)
@pytest.mark.parametrize("capturing", [True, False])
def test_device(benchmark, monkeypatch, capturing):
    FakeGpu(monkeypatch, capturing)
    called = []
    CLOCK.measure(benchmark, called.append, sets=10, most_seconds=0.021)
    assert set(called) == set(range(10))
"""


def test_times_are_a_gpus_own(tmp_path: pathlib.Path) -> None:
    """A sweep over 10 input sets that takes 3 ms of the device is a round of 0.3 ms, whatever the host took."""
    test, folder = tmp_path / "test_device.py", tmp_path / "saved"
    test.write_text(ON_A_GPU)
    benchmarks(folder, str(test), "--benchmark-autosave", "--rootdir", str(tmp_path))
    found = saved(folder)
    assert [b["extra_info"]["method"] for b in found.values()] == ["graph replay, cold", "events, host included"]
    for benchmark in found.values():
        stats = benchmark["stats"]
        assert (stats["rounds"], stats["iterations"]) == (7, 1)
        assert (stats["min"], stats["median"], stats["max"]) == pytest.approx((3e-4, 3e-4, 3e-4))
