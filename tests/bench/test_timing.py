"""How times are taken. No test looks at a time's value."""

import ctypes
import sys

import pytest
import torch

from tests.helpers.fake_gpu import FakeGpu
from ulsam_fused.bench import timing

CPU = torch.device("cpu")


def test_percentiles() -> None:
    found = timing.Timing.of([float(i) for i in range(1, 12)], "test")
    assert (found.p20, found.p50, found.p80) == (3.0, 6.0, 9.0)


def test_input_sets_leave_nothing_in_a_cache() -> None:
    cuda = torch.device("cuda")
    assert timing.sets_needed(10**6, CPU) == 1
    assert timing.sets_needed(10**7, cuda) == 20
    assert timing.sets_needed(10**9, cuda) == 2
    assert timing.sets_needed(1, cuda) == timing.MOST_SETS


@pytest.mark.parametrize("capturing", [True, False])
def test_device_time_is_that_of_one_call_of_a_sweep_over_all_sets(
    capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, called = FakeGpu(monkeypatch, capturing), set()
    found = timing.device_time(called.add, sets=10, seconds=0)
    assert (found.p20, found.p50, found.p80) == pytest.approx((300, 300, 300))
    assert found.method == ("graph replay, cold" if capturing else "events, host included")
    assert called == set(range(10))
    assert (gpu.replays > 0) is capturing


def test_host_time_ends_in_time_and_after_1000_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, capturing=True)
    called: list[int] = []
    assert timing.host_time(called.append, seconds=0) > 0
    assert len(called) == 10 + 5 * 10
    called.clear()
    timing.host_time(called.append, seconds=1e9)
    assert len(called) == 10 + 1000


@pytest.mark.skipif(sys.platform != "linux", reason="for glibc")
def test_memory_of_results_stays_with_the_process() -> None:
    """It lies in the heap, which does not shrink. A busy machine has page faults of its own."""
    timing.keep_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_size_t, [ctypes.c_ssize_t]
    libc.free.argtypes = [ctypes.c_size_t]
    size = 31 << 20
    assert torch.empty(size, dtype=torch.uint8).data_ptr() < libc.sbrk(0), "mapped alone, and returned alone"
    last = [libc.malloc(size) for _ in range(2)]  # nothing small lies behind it
    end = libc.sbrk(0)
    for address in last:
        libc.free(address)
    assert libc.sbrk(0) >= end
