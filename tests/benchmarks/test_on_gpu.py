"""The scripts that measure everything in one call: what they run, in which order, and what a failure leaves."""

import argparse
import itertools
import json
import pathlib
from types import ModuleType
from typing import Any

import pytest

from benchmarks import on_cpu, on_gpu, parts, sizes, warm_up
from tests.helpers.processes import ROOT, run_main, run_python
from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.directions import DIRECTIONS
from ulsam_fused.bench.providers import providers
from ulsam_fused.bench.workload import check_case
from ulsam_fused.cli.options import bench


def test_nothing_is_measured_without_a_gpu(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        run_main(on_gpu, "--output", tmp_path)
    assert "no GPU is available" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def options_of(part: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(part.options)


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_type_format_and_direction_is_measured_on_a_gpu(quick: bool) -> None:
    planned = [options_of(part) for part in on_gpu.plan("cuda", quick)]
    names = {p.name for p in providers(["triton"], compiled=True)}
    for options in planned:
        assert set(options.provider) <= names
        assert {"eager", "fused[triton]", "fused[triton]+norm"} <= set(options.provider)
        assert options.layout == list(LAYOUTS)
        assert options.direction == list(DIRECTIONS)
        assert options.case == list(sizes.CASES[: len(options.case)])
    whole = {options.dtype for options in planned if len(options.case) == len(sizes.CASES)}
    assert whole == (set() if quick else {"float16", "bfloat16", "float32"})
    for case in sizes.CASES:
        check_case(case)


def test_every_case_is_measured_on_a_cpu_beside_its_peers() -> None:
    planned = [options_of(part) for part in on_cpu.plan(1.0, quick=False, threads=2)]
    measured = [(case, options.dtype, *options.layout) for options in planned for case in options.case]
    assert len(set(measured)) == len(measured)
    assert {(case, "float32", "nchw") for case in sizes.small()} <= set(measured)
    assert len({kind[1:] for kind in measured}) == 4  # two types in two memory formats
    (alone,) = [options_of(part) for part in on_cpu.plan(1.0, quick=False, threads=1)]
    assert set(alone.case) <= set(sizes.small())
    for options in (*planned, alone):
        assert options.direction is None
        assert options.compile or {"eager", "vectorised+compile", "fused[cpp]"} <= set(options.provider)


class Machine:
    """Stands for the processes of a script; a command of which a word is in `failing` ends with 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: str, script: ModuleType = on_gpu) -> None:
        self.failing, self.commands, self.script = failing, [], script
        monkeypatch.setattr(parts, "run", self.run)
        monkeypatch.setattr(on_gpu.torch.cuda, "is_available", lambda: True)

    def run(self, command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
        self.commands.append(command)
        if "--json" in command:
            row = {key: command[command.index(f"--{key}") + 1] for key in ("case", "dtype")}
            row["layout"] = command[command.index("--layout") + 1] if "--layout" in command else "nchw"
            row |= {"direction": "forward", "compiled": "vectorised+compile" in command}
            heading = {"device": "NVIDIA H0", "threads": None, "torch": "2.11.0+cu130", "triton": "3.6.0"}
            result = {**heading, "commit": None, "rows": [row]}
            pathlib.Path(command[command.index("--json") + 1]).write_text(json.dumps(result))
        return int(any(name in " ".join(command) for name in self.failing)), "the last line"

    def main(self, *arguments: object) -> int | None:
        return run_main(self.script, *arguments)


def kind(command: list[str]) -> str:
    """The command of the package, or the module that is run."""
    assert command[0] == "-m"
    return command[2] if command[1] == "ulsam_fused" else command[1].removeprefix("benchmarks.")


def test_one_call_on_a_gpu(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test file, then the check, then kernels are compiled, then the benchmarks, whose rows come together."""
    machine = Machine(monkeypatch)
    assert machine.main("--output", tmp_path, "--commit", "0123abc") == 0
    tested = [(pathlib.Path(command[-1]), command[-2]) for command in machine.commands if "pytest" in command]
    wanted = [(ROOT / "tests" / name, f"{i}/{count}") for name, count in on_gpu.TESTS.items() for i in range(count)]
    assert sorted(tested) == sorted(wanted)
    assert all(path.is_file() for path, _ in tested)
    order = [kind(command) for command in machine.commands]
    assert order[: len(tested)] == ["pytest"] * len(tested)
    assert order[len(tested) :] == ["check", *["warm_up"] * len(sizes.CASES), *["bench"] * 4]
    (file,) = tmp_path.glob("*.json")
    assert file.name == "nvidia-h0-torch2.11.0-triton3.6.0.json"
    result = json.loads(file.read_text())
    assert (result["device"], result["commit"]) == ("NVIDIA H0", "0123abc")
    assert [(row["dtype"], row["compiled"]) for row in result["rows"]] == [
        ("float16", True), ("float32", False), ("bfloat16", False),
    ]  # fmt: skip


COLLECT = """
import sys, pytest
for part in (None, "0/3", "1/3", "2/3"):
    print("part")
    options = ["--shard", part] if part else []
    assert pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *options, *sys.argv[1:]]) == 0
"""


@pytest.mark.slow  # a process that imports PyTorch
def test_parts_of_a_test_file_are_all_of_it() -> None:
    printed = run_python(["-c", COLLECT, "tests/train/test_checkpoint.py"], ROOT, {"PYTHONPATH": str(ROOT)})
    _, whole, *shards = ([line for line in text.splitlines() if "::" in line] for text in printed.split("part\n"))
    assert sorted(itertools.chain(*shards)) == sorted(whole)
    assert min(map(len, shards)) > 1


def test_what_is_measured_again_replaces_its_whole_group() -> None:
    """Else a ratio would be one of two runs."""
    row = {"case": "c", "direction": "forward", "dtype": "float16", "layout": "nchw"}
    first = {"date": "1", "rows": [{**row, "us": 1}, {**row, "us": 2}, {**row, "layout": "channels_last", "us": 3}]}
    second = {"date": "2", "rows": [{**row, "us": 4}]}
    joined = parts.joined(first, second)
    assert ([row["us"] for row in joined["rows"]], joined["date"]) == ([3, 4], "1")


@pytest.mark.parametrize("failing", ["test_backward.py", "check"])
def test_nothing_is_measured_after_a_failure(
    failing: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, failing)
    assert machine.main("--output", tmp_path) == 1
    assert not any("bench" in command for command in machine.commands)
    assert machine.main("--output", tmp_path, "--keep-going") == 1
    assert sum("bench" in command for command in machine.commands) == 4


def test_what_was_measured_before_the_time_was_out_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch)
    clock = iter([0.0, 100.0, 300.0, 450.0, 530.0])
    monkeypatch.setattr(parts.time, "monotonic", lambda: next(clock))
    assert machine.main("--output", tmp_path, "--skip-tests", "--quick") == 1
    (file,) = tmp_path.glob("*.json")
    assert [row["dtype"] for row in json.loads(file.read_text())["rows"]] == ["float16", "float32"]
    assert "bench bfloat16: out of time" in capsys.readouterr().out


def test_one_call_on_a_cpu(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cpu.torch, "get_num_threads", lambda: 2)
    machine = Machine(monkeypatch, script=on_cpu)
    assert machine.main("--output", tmp_path) == 0
    assert [kind(command) for command in machine.commands] == ["bench"] * 5
    (file,) = tmp_path.glob("*.json")
    assert len(json.loads(file.read_text())["rows"]) == 5


def test_warming_up_calls_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each type and memory format, at both batches: inference, and what gradients take."""
    called: list[tuple[Any, ...]] = []

    def call(module: Any, inputs: Any, direction: str) -> Any:
        ((x, _),) = inputs
        called.append((type(module).__module__, direction, x.dtype, x.shape[0], x.is_contiguous()))
        return lambda i: None

    monkeypatch.setattr(warm_up.calls, "call", call)
    run_main(warm_up, "2x4x3x3/g2", "cpu")
    assert len(called) == len(set(called)) == 4 * 3 * 2 * 2  # paper: 2 directions, authors: 2; types; formats; batches
