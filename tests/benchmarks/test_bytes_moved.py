"""What stands in benchmarks/: figures come from files, counts from operators, and nothing is measured without a GPU."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.published import plots
from tests.helpers.processes import ROOT

TABLES = [sys.executable, "-m", "benchmarks.published.tables"]
PAGES = ["README.md", "docs/figures.md"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def test_pages_show_what_was_measured() -> None:
    done = subprocess.run([*TABLES, "--check"], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pictures_show_what_was_measured() -> None:
    assert plots.problems(ROOT / "benchmarks" / "results") == []


@pytest.fixture
def copied(tmp_path: pathlib.Path) -> pathlib.Path:
    """Both pages and benchmarks/ alone, to be changed."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    for page in PAGES:
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def tables(folder: pathlib.Path, *options: str) -> int:
    return subprocess.run([*TABLES, *options], capture_output=True, env=ENVIRONMENT, cwd=folder).returncode


@pytest.mark.parametrize(("page", "figure"), [("README.md", " times**"), ("docs/figures.md", "×)")])
def test_a_changed_figure_is_noticed(copied: pathlib.Path, page: str, figure: str) -> None:
    text = (copied / page).read_text()
    assert figure in text
    (copied / page).write_text(text.replace(figure, "9" + figure, 1))
    assert tables(copied, "--check") == 1


def test_a_missing_gpu_is_said() -> None:
    """In both pages, as long as there are no figures of one."""
    measured = any(not path.name.startswith("cpu-") for path in plots.published(ROOT / "benchmarks" / "results"))
    readme, figures = ((ROOT / page).read_text() for page in PAGES)
    assert ("Times on a GPU are not measured yet" in readme) != measured
    assert ("No figure in this repository was taken on a GPU" in figures) != measured
    assert ("median microseconds on the device" in figures) == measured


def test_a_changed_file_is_noticed(copied: pathlib.Path) -> None:
    """In both pages, and in every picture of it."""
    assert plots.problems(copied / "benchmarks" / "results") == []
    paths = (copied / "benchmarks" / "results").glob("cpu-*.json")
    path = max(paths, key=lambda path: json.loads(path.read_text())["date"])  # the pages show the newest
    result = json.loads(path.read_text())
    row = next(row for row in result["rows"] if row["provider"] == "fused[torch]")
    row["us_p50"] *= 2
    path.write_text(json.dumps(result))
    assert tables(copied, "--check") == 1
    kinds = plots.wanted(result)
    assert {"speed-of-light", "speedup"} <= set(kinds)
    assert plots.problems(path.parent) == [
        f"{path.stem}-{kind}.png was not drawn from what {path.name} says now" for kind in kinds
    ]


@pytest.mark.parametrize("num_splits", ["1", "4"])
def test_bytes_that_eager_moves(num_splits: str) -> None:
    """The page shows what is counted: operators, and bytes over the fewest possible."""
    expected = {"1": ["13", "10.0x", "14", "10.7x"], "4": ["49", "10.0x", "53", "10.7x"]}
    command = [sys.executable, "-m", "benchmarks.bytes_moved", "--num-splits", num_splits]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    counted = {line[:37].strip(): line[37:].split() for line in done.stdout.splitlines()[3:]}
    assert counted["authors' module, training"] == expected[num_splits]
    page = (ROOT / "docs" / "figures.md").read_text()
    for name, cells in counted.items():
        assert f"| {' | '.join([name, num_splits, *cells])} |".replace("x |", "× |") in page


GPU_HEADING = {
    "device": "NVIDIA H0", "threads": None, "torch": "2.11.0", "triton": "3.6.0", "commit": "0123456789",
    "date": "2999-12-01T00:00:00+00:00",
}  # fmt: skip


def gpu_result() -> dict[str, Any]:
    row = {"case": "2x8x4x4/g2", "dtype": "float16", "layout": "nchw", "direction": "forward", "peak_mem_mb": 1.5}
    figures = {
        "eager": (80.04, 1.0, 10.0, "upstream"), "fused[triton]": (9.96, 8.04, 81.4, "paper"),
        "vectorised+compile": (19.92, 4.02, 40.7, "paper"), "vectorised": (None, None, None, "paper"),
        "fused[triton]+norm": (16.0, 5.0, 50.0, "upstream"),
    }  # fmt: skip
    keys = ("us_p50", "speedup_vs_eager", "percent_of_ceiling", "form")
    rows = [
        {**row, "provider": name, "host_us": 14.2, **dict(zip(keys, values, strict=True))}
        for name, values in figures.items()
    ]
    return {**GPU_HEADING, "rows": rows}


def test_figures_of_a_gpu_would_be_shown(copied: pathlib.Path) -> None:
    (copied / "benchmarks" / "results" / "nvidia-h0.json").write_text(json.dumps(gpu_result()))
    assert tables(copied) == 0
    readme, figures = ((copied / page).read_text() for page in PAGES)
    assert "| 2x8x4x4/g2 | nchw | 10.0: 8.0× / 2.0×, 81 % | – | – | – | 14 |" in figures
    for kind in plots.KINDS:
        assert f"](../benchmarks/results/nvidia-h0-{kind}.png)" in figures
    assert "](benchmarks/results/nvidia-h0-speedup.png)" in readme
    assert "runs forward **5.0 to 5.0 times** as fast as in eager PyTorch (float16, NVIDIA H0; " in readme
    assert "a GPU are not measured" not in readme
    assert "was taken on a GPU" not in figures
    assert tables(copied, "--check") == 0


def test_pictures(tmp_path: pathlib.Path) -> None:
    """Drawn anew they belong to their file, whatever matplotlib drew them; and each is a picture of something."""
    path = tmp_path / "nvidia-h0.json"
    result = gpu_result()
    path.write_text(json.dumps(result))
    assert plots.problems(tmp_path) == [f"nvidia-h0-{kind}.png is missing" for kind in plots.KINDS]
    for kind in plots.KINDS:
        plots.draw(result, kind, plots.picture(path, kind))
    assert plots.problems(tmp_path) == []
    assert len({target.read_bytes() for target in tmp_path.glob("*.png")}) == len(plots.KINDS)
    (tmp_path / "old-speedup.png").write_bytes((tmp_path / "nvidia-h0-speedup.png").read_bytes())
    assert plots.problems(tmp_path) == ["old-speedup.png belongs to no file"]


def test_no_picture_of_what_was_not_measured() -> None:
    result = gpu_result()
    for row in result["rows"]:
        row["peak_mem_mb"] = None
    assert plots.wanted(result) == ["speed-of-light", "speedup"]
