"""Files of results say what the issue of this repository's figures promises, and a file that does not is refused."""

import copy
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.published import schema
from tests.helpers.processes import ROOT
from ulsam_fused import cli
from ulsam_fused.bench import directions, timing

Result = dict[str, Any]
FILES = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_published_files(path: pathlib.Path) -> None:
    assert schema.problems(json.loads(path.read_text()), path.name) == []


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What `bench` writes, with a clock of its own: the ceiling takes 1.23 us, the next provider 2.46, and so on."""

    def clock(calls: dict[str, timing.Call], seconds: float) -> dict[str, timing.Timing]:
        times = {name: 1.234 * i for i, name in enumerate(calls, start=1)}
        return {name: timing.Timing(us, 0.9 * us, 1.1 * us, "made up") for name, us in times.items()}

    out = tmp_path_factory.mktemp("results") / "b.json"
    command = ["bench", "--device", "cpu", "--backend", "torch", "--case", "2x16x12x10/g4"]
    command += [word for direction in directions.DIRECTIONS for word in ("--direction", direction)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "wall_clock", clock)
        assert cli.main([*command, "--json", str(out)]) == 0
    result: Result = json.loads(out.read_text())
    heading = {"commit": "0123abc", "device": "Intel(R) Xeon(R) Processor", "threads": 2, "torch": "2.13.0+cpu"}
    return result | heading


@pytest.fixture(scope="module")
def gpu(cpu: Result) -> Result:
    """The same with what only a GPU gives."""
    result = copy.deepcopy(cpu) | {"device": "NVIDIA H0 80GB", "threads": None, "triton": "3.7.1"}
    ceilings = {direction.ceiling for direction in directions.DIRECTIONS.values()}
    for row in result["rows"]:
        if row["provider"] not in ceilings:
            row |= {"host_us": 10.5, "peak_mem_mb": 1.25}
    return result


def test_what_bench_writes_is_in_order(cpu: Result, gpu: Result) -> None:
    assert schema.problems(cpu, "cpu-xeon-torch2.13.0.json") == []
    assert schema.problems(gpu, "nvidia-h0-80gb-torch2.13.0-triton3.7.1.json") == []


def test_a_row_with_an_error_has_no_figures(cpu: Result) -> None:
    tampered = copy.deepcopy(cpu)
    row = next(row for row in tampered["rows"] if row["provider"] == "vectorised")
    row["error"] = "wrong: y-x is off"
    (problem,) = schema.problems(tampered, schema.file_name(tampered))
    assert problem.endswith("it has an error, and figures")
    row |= dict.fromkeys((*schema.NUMBERS, "method"))
    assert schema.problems(tampered, schema.file_name(tampered)) == []


def test_names_of_files() -> None:
    names = {
        "Intel(R) Xeon(R) CPU @ 2.20GHz": "cpu-xeon",
        "AMD EPYC 7B13": "cpu-epyc-7b13",
        "Apple M2": "cpu-apple-m2",
    }
    for device, name in names.items():
        result = {"device": device, "threads": 2, "torch": "2.11.0", "triton": None}
        assert schema.file_name(result) == f"{name}-torch2.11.0.json"
        assert schema.file_name(result | {"threads": 1}) == f"{name}-torch2.11.0-1-thread.json"


def change(**values: Any) -> Callable[[Result], None]:
    return lambda result: result.update(values)


def change_row(name: str, /, **values: Any) -> Callable[[Result], None]:
    """Changes the first row of this provider; a function is applied to what stands there."""

    def tamper(result: Result) -> None:
        row = next(row for row in result["rows"] if row["provider"] == name)
        row.update({key: value(row[key]) if callable(value) else value for key, value in values.items()})

    return tamper


def without_eager(result: Result) -> None:
    result["rows"] = [row for row in result["rows"] if row["provider"] != "eager"]


TAMPERED = {
    "no commit": (change(commit=None), "commit is None"),
    "files that differ": (change(commit="0123abc-dirty"), "commit is '0123abc-dirty'"),
    "no time zone": (change(date="2026-11-23T00:07:13"), "date has no time zone"),
    "no date": (change(date=None), "date is None"),
    "no device": (change(device=""), "device is empty"),
    "no version": (change(torch=None), "torch is None"),
    "another version": (change(torch="2.14.0"), "the name should be cpu-xeon-torch2.14.0.json"),
    "no rows": (change(rows=[]), "there are no rows"),
    "another key": (change(host="mine"), "keys are"),
    "a column too few": (lambda result: result["rows"][0].pop("gbps"), "row 0: keys are"),
    "a bad case": (change_row("eager", case="2x16x12x10/g3"), "case is '2x16x12x10/g3'"),
    "an old name": (change_row("eager", direction="step"), "direction is 'step'"),
    "an unknown type": (change_row("eager", dtype="fp32"), "dtype is 'fp32'"),
    "an unknown layout": (change_row("eager", layout="nhwc"), "layout is 'nhwc'"),
    "an unknown provider": (change_row("eager", provider="theirs"), "provider is 'theirs'"),
    "another direction's ceiling": (change_row("copy", provider="add"), "provider is 'add'"),
    "another form": (change_row("eager", form="paper"), "form is 'paper'"),
    "a time of nothing": (change_row("eager", us_p20=0), "us_p20 is 0"),
    "a word": (change_row("eager", us_p50="fast"), "us_p50 is 'fast'"),
    "no time": (change_row("eager", us_p50=None), "figures are missing"),
    "percentiles": (change_row("eager", us_p20=lambda us: 1e9), "percentiles are in no order"),
    "host time of a CPU": (change_row("eager", host_us=1.0), "host_us is 1.0"),
    "memory of a CPU": (change_row("eager", peak_mem_mb=1.0), "peak_mem_mb is 1.0"),
    "bytes": (change_row("vectorised", gbps=lambda gbps: 1.1 * gbps + 0.1), "gbps is"),
    "share": (change_row("vectorised", percent_of_ceiling=lambda share: 1.1 * share + 1), "percent_of_ceiling is"),
    "speedup": (change_row("vectorised", speedup_vs_eager=lambda times: times + 0.1), "speedup_vs_eager is"),
    "speedup over paper": (change_row("vectorised", speedup_vs_paper_eager=None), "speedup_vs_paper_eager is None"),
    "a ceiling's speedup": (change_row("copy", speedup_vs_eager=2.0), "copy: speedup_vs_eager is 2.0"),
    "speedup over nothing": (without_eager, "speedup_vs_eager is"),
    "twice": (lambda result: result["rows"].append(result["rows"][1]), "a provider has several rows"),
    "no ceiling": (lambda result: result["rows"].pop(0), "the row of the ceiling is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TAMPERED))
def test_what_is_wrong_is_said(name: str, cpu: Result) -> None:
    tamper, problem = TAMPERED[name]
    tampered = copy.deepcopy(cpu)
    tamper(tampered)
    found = schema.problems(tampered, "cpu-xeon-torch2.13.0.json")
    assert any(problem in text for text in found), found


@pytest.mark.parametrize("key", ["host_us", "peak_mem_mb"])
def test_a_gpu_has_host_time_and_memory(key: str, gpu: Result) -> None:
    tampered = copy.deepcopy(gpu)
    change_row("vectorised", **{key: None})(tampered)
    assert schema.problems(tampered, schema.file_name(tampered)) == [f"row 3: {key} is None"]


def test_the_script_says_so_too(tmp_path: pathlib.Path, cpu: Result, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "cpu-xeon-torch2.13.0.json", tmp_path / "cpu.json"
    for path in (good, bad):
        path.write_text(json.dumps(cpu))
    assert schema.main([str(good)]) == 0
    assert schema.main([str(good), str(bad)]) == 1
    assert "cpu.json: the name should be cpu-xeon-torch2.13.0.json" in capsys.readouterr().out
