"""Every shipped launch configuration, compiled for real and held to its budget. Needs no GPU."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from ulsam_fused.kernels import budgets

from processes import ROOT

triton = pytest.importorskip("triton")
# one worker compiles what is for one architecture
ARCHITECTURES = [pytest.param(arch, marks=pytest.mark.xdist_group(f"sm_{arch}")) for arch in (80, 90, 100)]


each_architecture = pytest.mark.parametrize("compiled", ARCHITECTURES, indirect=True, scope="module")


def run(script: pathlib.Path, *arguments: str, cache: pathlib.Path) -> str:
    """What a script prints, in a process without the interpreter and with a cache of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `benchmarks/resources.py` counts for one architecture."""
    folder = tmp_path_factory.mktemp(f"sm_{request.param}")
    output = folder / "resources.json"
    script = ROOT / "benchmarks" / "resources.py"
    run(script, "--arch", str(request.param), "--json", str(output), cache=folder / "cache")
    result = json.loads(output.read_text())
    assert 24 <= result["configurations"] <= 40  # about 100 for three architectures
    rows: list[dict[str, Any]] = result["rows"]
    assert len(rows) >= result["configurations"]
    return rows


def test_unusual_calls_compile(tmp_path: pathlib.Path) -> None:
    """Sizes of 1, absent tensors, odd strides: the interpreter accepts code that the compiler refuses."""
    output = run(pathlib.Path(__file__).with_name("compile_unusual.py"), cache=tmp_path)
    assert output.split() == ["50", "launches", "compiled"]


@each_architecture
def test_within_budget(compiled: list[dict[str, Any]]) -> None:
    assert sum(row["march"] > 0 for row in compiled) >= 24
    assert {row["case"]: found for row in compiled if (found := budgets.violations(row, triton.__version__))} == {}


def test_budgets_notice_each_excess() -> None:
    row = {
        "case": "forward float16 nchw 32x7x7 paper",
        "spills": 0,
        "stack": 0,
        "warps_per_sm": 12,
        "march": 20.0,
        "barriers": 0,
    }
    assert budgets.violations(row, "3.7.1") == []
    for excess in ({"spills": 1}, {"stack": 8}, {"warps_per_sm": 4}, {"march": 99.0}, {"barriers": 9}):
        assert len(budgets.violations(row | excess, "3.7.1")) == 1


@each_architecture
def test_wide_accesses_where_strides_allow(compiled: list[dict[str, Any]]) -> None:
    """The second sweep moves 16 bytes per lane where 16 bytes divide every stride."""
    aligned = [row for row in compiled if " 32x28x28 " in row["case"] and "apply" in row["kernel"]]
    assert aligned
    assert [row for row in aligned if row["load_bytes"] < 16 or row["store_bytes"] < 16] == []


@each_architecture
def test_the_maximum_keeps_nan(compiled: list[dict[str, Any]]) -> None:
    """No value test on a CPU can see this: the interpreter keeps NaN in any maximum."""
    marches = [row for row in compiled if row["march"] and "float64" not in row["case"]]  # float64 compares and selects
    assert marches
    assert [row for row in marches if not row["nan_maximum"]] == []
