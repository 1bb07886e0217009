"""`ulsam-fused accuracy`: what it prints and writes, and that it notices a wrong operator."""

import json
import math
import pathlib

import pytest
import torch

from tests.helpers import mutants
from ulsam_fused import cli, reference
from ulsam_fused.bench import cases
from ulsam_fused.bench.operator_accuracy import QUANTITIES, errors
from ulsam_fused.cli import accuracy

CPU = torch.device("cpu")
FEW = [cases.Case((2, 6, 7, 5, 2), dtype, "nchw", "peaked", "relu") for dtype in ("float32", "bfloat16")]


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "quick", lambda: iter(FEW))


def test_lines_and_file(few_cases: None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "accuracy.json"
    arguments = ["--quick", "--backend", "torch", "--device", "cpu", "--verbose", "--json", str(file)]
    assert cli.main(["accuracy", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("torch   never worse than eager")
    assert sum(line.startswith("2x6x7x5/g2 ") for line in lines) == 2 * len(QUANTITIES)
    rows = json.loads(file.read_text())["rows"]
    assert [row["quantity"] for row in rows] == 2 * list(QUANTITIES)
    assert {(row["backend"], row["dtype"], row["maps"]) for row in rows} == {
        ("torch", "float32", "peaked"), ("torch", "bfloat16", "peaked"),
    }  # fmt: skip
    assert all(0 <= row["fused"] < 1 for row in rows)


def test_a_file_that_cannot_be_written_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["accuracy", "--json", "/nowhere/accuracy.json"]) == 2
    assert "there is no folder /nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("case", FEW, ids=str)
def test_errors_are_in_ulp_of_the_type_that_holds_the_result(case: cases.Case) -> None:
    """A rounding or two; eager PyTorch compared with itself is exactly as far."""
    found = {e.quantity: e for e in errors(reference.subspace_attention, case.problem(CPU))}
    assert list(found) == list(QUANTITIES)
    assert all(e.fused == e.eager and e.behind == 0 for e in found.values())
    assert 0.05 < found["y"].fused_ulp < 1
    assert found["y"].fused_ulp * torch.finfo(getattr(torch, case.dtype)).eps == pytest.approx(found["y"].fused)


def test_a_wrong_operator_is_far_behind() -> None:
    rows = accuracy.measure(mutants.slightly_wrong, FEW[:1], CPU)
    assert {row.errors.quantity: row.errors.behind > 100 for row in rows}["A"]
    assert "by more than" in accuracy.verdict(rows)
    rows = accuracy.measure(mutants.without_gradient(2), FEW[:1], CPU)
    assert math.isinf(max(row.errors.behind for row in rows))
