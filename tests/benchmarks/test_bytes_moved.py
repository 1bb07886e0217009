"""What stands in benchmarks/: figures come from files, counts from operators, and nothing is measured without a GPU."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from benchmarks import bytes_moved
from benchmarks.published import plots, tables
from tests.helpers.processes import ROOT, run_main

PAGES = {"README": "README.md", "FIGURES": "docs/figures.md"}
RESULTS = "benchmarks/results"


def test_pages_show_what_was_measured() -> None:
    assert run_main(tables, "--check") == 0


def test_pictures_show_what_was_measured() -> None:
    assert plots.problems(ROOT / RESULTS) == []


@pytest.fixture
def copied(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a copy of both pages and all results, which the script takes for the repository."""
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    monkeypatch.setattr(tables.schema, "RESULTS", tmp_path / RESULTS)
    (tmp_path / "docs").mkdir()
    for name, page in PAGES.items():
        shutil.copy(ROOT / page, tmp_path / page)
        monkeypatch.setattr(tables, name, tmp_path / page)
    return tmp_path


@pytest.mark.parametrize(("page", "figure"), [("README.md", " times**"), ("docs/figures.md", "×)")])
def test_a_changed_figure_is_noticed(copied: pathlib.Path, page: str, figure: str) -> None:
    text = (copied / page).read_text()
    assert figure in text
    (copied / page).write_text(text.replace(figure, "9" + figure, 1))
    assert run_main(tables, "--check") == 1


def test_a_missing_gpu_is_said() -> None:
    """In both pages, as long as there are no figures of one."""
    measured = any(not path.name.startswith("cpu-") for path in plots.published(ROOT / RESULTS))
    readme, figures = ((ROOT / page).read_text() for page in PAGES.values())
    assert ("Times on a GPU are not measured yet" in readme) != measured
    assert ("No figure in this repository was taken on a GPU" in figures) != measured
    assert ("median microseconds on the device" in figures) == measured


def test_a_changed_file_is_noticed(copied: pathlib.Path) -> None:
    """In both pages, and in every picture of it."""
    assert plots.problems(copied / RESULTS) == []
    paths = [path for path in (copied / RESULTS).glob("cpu-*.json") if not path.stem.endswith(tables.schema.ONE_THREAD)]
    path = max(paths, key=lambda path: json.loads(path.read_text())["date"])  # the pages show the newest
    result = json.loads(path.read_text())
    row = next(row for row in result["rows"] if row["provider"] == "fused[torch]")
    row["us_p50"] *= 2
    path.write_text(json.dumps(result))
    assert run_main(tables, "--check") == 1
    kinds = plots.wanted(result)
    assert {"speed-of-light", "speedup"} <= set(kinds)
    assert plots.problems(path.parent) == [
        f"{path.stem}-{kind}.png was not drawn from what {path.name} says now" for kind in kinds
    ]


@pytest.mark.parametrize("num_splits", ["1", "4"])
def test_bytes_that_eager_moves(num_splits: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The page shows what is counted: operators, and bytes over the fewest possible."""
    expected = {"1": ["13", "10.0x", "14", "10.7x"], "4": ["49", "10.0x", "53", "10.7x"]}
    run_main(bytes_moved, "--num-splits", num_splits)
    counted = {line[:37].strip(): line[37:].split() for line in capsys.readouterr().out.splitlines()[3:]}
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
    (copied / RESULTS / "nvidia-h0.json").write_text(json.dumps(gpu_result()))
    assert run_main(tables) == 0
    readme, figures = ((copied / page).read_text() for page in PAGES.values())
    assert "| 2x8x4x4/g2 | nchw | 10.0: 8.0× / 2.0×, 81 % | – | – | – | 14 |" in figures
    for kind in plots.KINDS:
        assert f"](../benchmarks/results/nvidia-h0-{kind}.png)" in figures
    assert "](benchmarks/results/nvidia-h0-speedup.png)" in readme
    assert "; it runs forward **5.0 to 5.0 times** as fast (float16, NVIDIA H0). [All figures](" in readme
    assert "a GPU are not measured" not in readme
    assert "was taken on a GPU" not in figures
    assert run_main(tables, "--check") == 0


@pytest.mark.slow  # draws three pictures
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
