"""Every shipped launch configuration, compiled for real, held to its budget, and executed. Needs no GPU.

`make test` compiles for sm_90, and little for AMD. `make compile-matrix` names more in ULSAM_FUSED_TEST_ARCHS and
ULSAM_FUSED_TEST_AMD.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.compiled import budgets
from tests.helpers.processes import ROOT
from tests.ptx.run import emulated

triton = pytest.importorskip("triton")

ARCHS = [int(arch) for arch in os.environ.get("ULSAM_FUSED_TEST_ARCHS", "90").split()]
AMD = os.environ.get("ULSAM_FUSED_TEST_AMD", "").split()


def run(module: str, *arguments: str, cache: pathlib.Path) -> str:
    """What a module prints, in a process without the interpreter. `make` keeps compiled kernels, others do not."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment = {"TRITON_CACHE_DIR": str(cache)} | environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow  # compiles 64 kernels, and translates 125
def test_unusual_calls_compile(tmp_path: pathlib.Path) -> None:
    """Sizes of 1, absent tensors, odd strides: the interpreter accepts code that the compiler refuses."""
    output = run("tests.kernels.gpu.compile_unusual", cache=tmp_path)
    assert output.split() == ["64", "launches", "compiled,", "125", "translated"]


@pytest.mark.slow  # a process that imports PyTorch and Triton
def test_kept_kernels_get_the_same_arguments(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past Triton's binding: the same kernel with the same arguments, whatever differs between calls."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    output = run("tests.kernels.gpu.launches_kept", cache=tmp_path)
    assert output.split() == ["74", "launches", "compared"]
    assert not list(tmp_path.iterdir()), "a kernel that is empty must not be found later"


@pytest.mark.slow  # compiles 10 kernels
@pytest.mark.parametrize("amd", [None, *AMD])
def test_promises_of_neighbours_widen_no_access(amd: str | None, tmp_path: pathlib.Path) -> None:
    """Else a march would read what is not there; only whole runs of columns are read at once."""
    widths = json.loads(run("tests.kernels.gpu.access_widths", *([amd] if amd else []), cache=tmp_path))
    store = 8 if amd else 4  # AMD's compiler writes the pair (max, sum of exp) of a strip at once
    assert widths.pop("contiguous") == {"logits": [16, store], "march": [16, 16]}
    assert len(widths) == 4
    assert all(found == {"logits": [4, store], "march": [4, 4]} for found in widths.values()), widths


@pytest.mark.slow  # compiles 2 kernels, slowly; `make compile-matrix` compiles all
def test_compiles_for_amd(tmp_path: pathlib.Path) -> None:
    """A forward and a backward that has whole rows elsewhere, with warps of 64 lanes: no spills, a maximum with NaN."""
    lines = run("benchmarks.compiled.amd", "--arch", "gfx942", "--part", "3/27", cache=tmp_path).splitlines()
    assert lines[-1] == "2 configurations, 0 kernels wrong"
    warps = {line.split()[0]: int(line[78:].split()[0]) for line in lines[1:-1]}
    assert warps == {"forward": 1, "backward": 2}, "half as many as on NVIDIA's GPUs, for as many lanes"


@pytest.mark.slow  # compiles about 35 kernels and disassembles each
@pytest.mark.parametrize("part", ["1/2", "2/2"])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_configuration(arch: int, part: str, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "resources.json"
    printed = run(
        "benchmarks.compiled.resources", "--arch", str(arch), "--part", part, "--json", str(output),
        cache=tmp_path / "cache",
    )  # fmt: skip
    ranking = printed.split("where to work")[1].splitlines()[1:]
    shares = [float(line.split()[0]) for line in ranking]
    assert len(shares) == 8
    assert shares == sorted(shares, reverse=True)
    result = json.loads(output.read_text())
    rows: list[dict[str, Any]] = result["rows"]
    assert 12 <= result["configurations"] <= 32  # about 160 in all for three architectures
    assert len(rows) >= result["configurations"]

    marches = [row for row in rows if row["march"] and row["kernel"] != "moments"]
    assert len(marches) >= 12
    assert {row["case"]: found for row in rows if (found := budgets.violations(row))} == {}

    # the maximum keeps NaN, which no value test on a CPU can see; in float64 it is compared and selected
    keeping = [row for row in marches if "float64" not in row["case"]]
    assert keeping
    assert [row for row in keeping if not row["nan_maximum"]] == []

    told = {"PTX_ARCH": str(arch), "PTX_PART": part, "PTX_ASSEMBLE": "1"}  # the same kernels, so that none is compiled
    printed = emulated("tests/ptx/emulated/shipped.py", cache=tmp_path / "cache", **told)
    assert f"{result['configurations']} passed" in printed


@pytest.mark.slow  # a process that imports PyTorch and Triton, and measures
def test_host_path_can_be_timed(tmp_path: pathlib.Path) -> None:
    """The times are not judged, only what they are made of: launches and functions."""
    lines = run("benchmarks.compiled.host_time", "--rounds", "1", cache=tmp_path).splitlines()
    rows = {line[:42].strip(): [float(word) for word in line[42:].split()] for line in lines[2:6]}
    assert {name: row[0] for name, row in rows.items()} == {
        "paper's form, training step": 3,
        "authors' form, training step": 6,
        "paper's form, no gradient": 1,
        "authors' form in eval mode, no gradient": 1,
    }
    for _, whole, bound, triton_alone, over, *_ in rows.values():
        assert min(whole, bound, triton_alone) > 0
        assert over == pytest.approx(whole - triton_alone, abs=0.11)
    # with Triton 3.7.1 and torch 2.13, 40 and 51 functions of Python, 28 and 64 others, of which each tensor's
    # `is_neg` is one: 40 nanoseconds
    kept = triton.__version__.startswith(("3.6.", "3.7.", "3.8.", "3.9."))
    limits = {"paper's form, no gradient": (41, 29), "authors' form in eval mode, no gradient": (53, 65)}
    for name, (python, other) in limits.items():
        assert rows[name][-2] <= python + 20 * (not kept), name
        assert rows[name][-1] <= other + 60 * (not kept), name


def test_shares_of_the_floor() -> None:
    row = {"case": "norm_backward float16 nchw 32x7x7 both", "kernel": "march", "march": 94.0}
    assert budgets.over_floor(row) == 2.0
    assert budgets.over_floor(row | {"case": "folded float32 nchw 32x7x7 general", "march": 31.0}) == 0.5
    for unknown in ({"march": 0.0}, {"kernel": "moments"}, {"case": "forward float64 nchw 32x7x7 paper"}):
        assert budgets.over_floor(row | unknown) is None


def test_budgets_notice_each_excess() -> None:
    row = {
        "case": "forward float16 nchw 32x7x7 paper",
        "spills": 0,
        "stack": 0,
        "warps_per_sm": 12,
        "march": 9.0,
        "sweep": 4.0,
        "barriers": 0,
    }
    assert budgets.violations(row) == []
    for excess in ({"spills": 1}, {"stack": 8}, {"warps_per_sm": 4}, {"march": 99.0}, {"sweep": 99.0}, {"barriers": 9}):
        assert len(budgets.violations(row | excess)) == 1
