"""Rows and the tables made of them."""

import pytest
import torch
from torch import nn

from tests.helpers.fake_gpu import FakeGpu
from ulsam_fused.bench import directions, providers, report, rows, timing
from ulsam_fused.bench.measure import measure
from ulsam_fused.bench.rows import Measured, OnGpu
from ulsam_fused.bench.workload import Workload

CPU = torch.device("cpu")


def test_a_gpu_measurement_has_host_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, capturing=True)
    monkeypatch.setattr(Workload, "tensor", lambda self, batch=None: torch.ones(batch or 2, 4, 3, 3))
    workload = Workload("2x4x3x3/g2", "forward", "float32", "nchw", torch.device("cuda"))
    timings, on_gpu = measure(workload, {"one": nn.Identity()}, seconds=0)
    assert set(timings) == {"copy", "one"}
    assert on_gpu["one"].peak_mem_mb == 2.5
    assert on_gpu["one"].host_us > 0


def test_the_commit_is_that_of_this_checkout_or_none() -> None:
    found = rows.commit()
    assert found is None or found.removesuffix("-dirty").isalnum()


def test_a_gpu_row_shows_host_time_and_memory() -> None:
    workload = Workload("2x16x6x5/g4", "forward", "float16", "nchw", CPU)
    provider = providers.providers(["torch"], compiled=False)[0]
    timings = {name: timing.Timing(us, us, us, "graph replay, cold") for name, us in (("copy", 1.0), ("eager", 4.0))}
    row = rows.row(workload, provider, Measured(timings, {"eager": OnGpu(12.34, 5.6)}), None)
    assert (row["percent_of_ceiling"], row["host_us"], row["peak_mem_mb"]) == (25.0, 12.34, 5.6)
    table = report.details({**rows.heading(CPU), "rows": [row]}, [provider])
    assert "host us" in table
    assert "12.3" in table


@pytest.mark.parametrize("backends", [["torch"], ["triton", "torch"]])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_default_table_fits_a_screen(backends: list[str], compiled: bool) -> None:
    """The five or six sizes of a machine in three directions: 100 columns, 40 lines, whatever is timed."""
    found = providers.providers(backends, compiled)
    result: rows.Result = {**rows.heading(CPU), "rows": []}
    for i in range(5 + (len(backends) > 1)):
        for direction in directions.DEFAULT:
            workload = Workload(f"6{i}x1024x112x112/g4", direction, "float32", "channels_last", CPU)
            here = [p for p in found if p.takes_part(direction)]
            timings = {p.name: timing.Timing(us, us, us, "made up") for us, p in enumerate(here, start=98765)}
            result["rows"] += [rows.row(workload, p, Measured(timings, {}), None) for p in here]
    lines = report.summary(result).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert sum("forward+backward" in line for line in lines) == 5 + (len(backends) > 1)


def test_errors_are_told_in_full() -> None:
    (eager, paper, *_), workload = (
        providers.providers(["torch"], False),
        Workload("2x4x3x3/g2", "forward", "float32", "nchw", CPU),
    )
    measured = Measured({"eager": timing.Timing(8.0, 7.0, 9.0, "made up")}, {})
    problem = "wrong: y-x is off by 1.0e+00, allowed 1.0e-05"
    made = [rows.row(workload, eager, measured, None), rows.row(workload, paper, measured, problem)]
    text = report.summary({**rows.heading(CPU), "rows": made})
    assert f"paper-eager at 2x4x3x3/g2 forward float32 nchw: {problem}" in text.splitlines()
    (line,) = (line for line in text.splitlines() if line.startswith("  forward"))
    assert line.split() == ["forward", "8.0", "us", "wrong"]
