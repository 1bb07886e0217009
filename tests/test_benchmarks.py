"""What stands in benchmarks/: figures come from files, counts from operators, and nothing is measured without a GPU."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from processes import ROOT
from ulsam_fused.cli import bench

SCRIPT = ROOT / "benchmarks" / "tables.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def test_readme_shows_what_was_measured() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_figure_is_noticed(tmp_path: pathlib.Path) -> None:
    for name in ("benchmarks/results", "benchmarks/tables.py", "README.md"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-R", str(ROOT / name), str(target)], check=True)
    readme = tmp_path / "README.md"
    text = readme.read_text()
    assert "×)" in text
    assert "No figure in this repository was taken on a GPU" in text or "Median microseconds on the device" in text
    readme.write_text(text.replace("×)", "9×)", 1))
    done = subprocess.run([sys.executable, str(tmp_path / "benchmarks" / "tables.py"), "--check"], capture_output=True)
    assert done.returncode == 1


def test_bytes_that_eager_moves() -> None:
    """The counts that README shows: operators, and bytes over the fewest possible."""
    script = str(ROOT / "benchmarks" / "bytes_moved.py")
    for num_splits, expected in (("1", ["13", "10.0x", "14", "10.7x"]), ("4", ["49", "10.0x", "53", "10.7x"])):
        command = [sys.executable, script, "--num-splits", num_splits]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        (row,) = (line for line in done.stdout.splitlines() if line.startswith("authors' module"))
        assert row.split()[-4:] == expected


def test_nothing_is_measured_without_a_gpu(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "no GPU is available" in done.stderr
    assert not list(tmp_path.iterdir())


def test_figures_of_a_gpu_would_be_shown(tmp_path: pathlib.Path) -> None:
    for name in ("benchmarks/results", "benchmarks/tables.py", "README.md"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-R", str(ROOT / name), str(target)], check=True)
    head = {"device": "NVIDIA H0", "torch": "2.11.0", "triton": "3.6.0", "commit": "0123456789"}
    head["date"] = "2026-12-01T00"
    row = {"case": "2x8x4x4/g2", "dtype": "float16", "layout": "nchw", "direction": "forward", "speedup_vs_eager": 1.0}
    rows = [
        {**row, "provider": "eager", "us_p50": 80.04, "percent_of_ceiling": 10.0},
        {**row, "provider": "fused[triton]", "us_p50": 9.96, "percent_of_ceiling": 81.4, "speedup_vs_eager": 8.04},
        {**row, "provider": "vectorised", "us_p50": None, "percent_of_ceiling": None, "speedup_vs_eager": None},
    ]
    (tmp_path / "benchmarks" / "results" / "nvidia-h0.json").write_text(json.dumps({**head, "rows": rows}))
    subprocess.run([sys.executable, str(tmp_path / "benchmarks" / "tables.py")], check=True)
    readme = (tmp_path / "README.md").read_text()
    assert "| 2x8x4x4/g2 | float16, nchw | forward | 80.0 | wrong | – | – | 10.0 (8.0×), 81 % |" in readme
    assert "Not measured yet" not in readme


class Machine:
    """Stands for the processes of `benchmarks/on_gpu.py`; a command of which a word is in `failing` ends with 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: str) -> None:
        spec = importlib.util.spec_from_file_location("on_gpu", ROOT / "benchmarks" / "on_gpu.py")
        self.script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.script)
        self.failing, self.commands = failing, []
        monkeypatch.setattr(self.script, "run", self.run)
        monkeypatch.setattr(self.script.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(self.script.torch.cuda, "get_device_name", lambda: "NVIDIA H0")
        self.monkeypatch = monkeypatch

    def run(self, command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
        self.commands.append(command)
        if "--json" in command:
            row = {"dtype": command[command.index("--dtype") + 1], "compiled": "--compile" in command}
            pathlib.Path(command[command.index("--json") + 1]).write_text(json.dumps({"device": "H0", "rows": [row]}))
        return int(any(name in " ".join(command) for name in self.failing)), "the last line"

    def main(self, *arguments: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["on_gpu.py", *arguments])
        return self.script.main()


def test_one_call_on_a_gpu(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test file, then the check, then the benchmarks, whose rows come together in one file."""
    machine = Machine(monkeypatch)
    assert machine.main("--output", str(tmp_path)) == 0
    tested = {pathlib.Path(command[-1]) for command in machine.commands if "pytest" in command}
    assert tested == {ROOT / "tests" / name for name in machine.script.TESTS}
    assert all(path.is_file() for path in tested)
    order = [command[2 if "pytest" not in command else 1] for command in machine.commands]
    assert order[len(tested) :] == ["check", "bench", "bench", "bench", "bench"]
    (file,) = tmp_path.glob("nvidia-h0-torch*-triton*.json")
    result = json.loads(file.read_text())
    assert result["device"] == "H0"
    assert [(row["dtype"], row["compiled"]) for row in result["rows"]] == [
        ("float16", False), ("float16", True), ("float32", False), ("bfloat16", False),
    ]  # fmt: skip
    for case in machine.script.CASES:
        bench.check_case(case)


@pytest.mark.parametrize("failing", ["test_backward.py", "check"])
def test_nothing_is_measured_after_a_failure(
    failing: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, failing)
    assert machine.main("--output", str(tmp_path)) == 1
    assert not any("bench" in command for command in machine.commands)
    assert machine.main("--output", str(tmp_path), "--keep-going") == 1
    assert sum("bench" in command for command in machine.commands) == 4


def test_what_was_measured_before_the_time_was_out_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, "--compile")
    clock = iter([0.0, 100.0, 300.0, 450.0, 530.0])
    monkeypatch.setattr(machine.script.time, "monotonic", lambda: next(clock))
    assert machine.main("--output", str(tmp_path), "--skip-tests") == 1
    (file,) = tmp_path.glob("*.json")
    assert [row["dtype"] for row in json.loads(file.read_text())["rows"]] == ["float16", "float16", "float32"]
    assert "bench bfloat16: out of time" in capsys.readouterr().out


def test_benchmarks_run() -> None:
    """Once each, untimed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout
