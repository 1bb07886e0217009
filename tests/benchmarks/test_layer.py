"""benchmarks/test_layer.py under pytest-benchmark: files, comparisons, and a GPU's clock. No test looks at a time."""

import json
from typing import Any, NamedTuple

import pytest

from tests.helpers.processes import ROOT, run_python

pytestmark = [
    pytest.mark.slow,  # a process that imports PyTorch and runs pytest twice
    pytest.mark.xdist_group("pytest-benchmark"),
]

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

RUNS = "import json, sys, pytest; sys.exit(max([pytest.main(words) for words in json.loads(sys.argv[1])]))"


class Benchmarks(NamedTuple):
    printed: str
    saved: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Benchmarks:
    """Of one size, of the host and of a false GPU, saved; then of the host once more, compared."""
    layer, test = ROOT / "benchmarks" / "test_layer.py", tmp_path_factory.mktemp("test") / "test_device.py"
    test.write_text(ON_A_GPU)
    folder = tmp_path_factory.mktemp("saved")
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--benchmark-enable"]
    options += ["--benchmark-max-time=0.001", "--benchmark-min-rounds=1", f"--benchmark-storage=file://{folder}"]
    runs = [
        [*options, str(layer), str(test), "-k", "8x160x7x7 or host or device", "--benchmark-autosave"],
        [*options, str(layer), "-k", "host", "--benchmark-compare"],
    ]
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        # in the workers of pytest-xdist, which this variable tells of, pytest-benchmark keeps no files
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        printed = run_python(["-c", RUNS, json.dumps(runs)], ROOT, environment)
    (file,) = folder.rglob("*.json")
    return Benchmarks(printed, {found["name"]: found for found in json.loads(file.read_text())["benchmarks"]})


def test_times_are_kept_and_compared(benchmarks: Benchmarks) -> None:
    found = [benchmark for name, benchmark in benchmarks.saved.items() if not name.startswith("test_device")]
    assert len(found) == 15
    for benchmark in found:
        assert {"device", "torch", "triton", "commit"} <= set(benchmark["extra_info"])
    names = {(b["group"], b["params"]["name"]) for b in found if b["params"]}
    groups = {f"8x160x7x7/g4 {direction} float32 nchw" for direction in ("forward", "forward+backward", "train-norm")}
    assert {group for group, _ in names} == groups
    assert ("8x160x7x7/g4 train-norm float32 nchw", "fused[torch]+norm") in names
    first, second = benchmarks.printed.split("17 passed")
    assert "(NOW)" not in first
    assert "test_host_latency (NOW)" in second
    assert "test_host_latency (0001_" in second


def test_times_are_a_gpus_own(benchmarks: Benchmarks) -> None:
    """A sweep over 10 input sets that takes 3 ms of the device is a round of 0.3 ms, whatever the host took."""
    found = [benchmark for name, benchmark in benchmarks.saved.items() if name.startswith("test_device")]
    assert [b["extra_info"]["method"] for b in found] == ["graph replay, cold", "events, host included"]
    for benchmark in found:
        stats = benchmark["stats"]
        assert (stats["rounds"], stats["iterations"]) == (7, 1)
        assert (stats["min"], stats["median"], stats["max"]) == pytest.approx((3e-4, 3e-4, 3e-4))
