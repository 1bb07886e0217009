"""What stands in benchmarks/: figures come from files, counts from operators, and nothing is measured without a GPU."""

import os
import pathlib
import subprocess
import sys

from processes import ROOT

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


def test_benchmarks_run() -> None:
    """Once each, untimed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout
