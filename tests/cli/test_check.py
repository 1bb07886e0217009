"""`ulsam-fused check` passes what is right and fails each of many wrong operators."""

import math
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import ulsam_fused as uf
from tests.helpers import mutants
from ulsam_fused import cli
from ulsam_fused.bench import cases
from ulsam_fused.bench.operator_accuracy import QUANTITIES, Operator, compare
from ulsam_fused.cli import check

CPU = torch.device("cpu")


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of each kind in place of the table that `check --quick` works through."""
    rows = [
        cases.Case((2, 6, 7, 5, 2), "float32", "nchw", "random", None),
        cases.Case((2, 6, 7, 5, 2), "bfloat16", "channels_last", "peaked", "relu"),
        cases.Case((2, 6, 7, 5, 2), "float32", "nchw", "ties", None),
    ]
    monkeypatch.setattr(cases, "quick", lambda: iter(rows))


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_check_passes_and_counts(few_cases: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "--quick", "--backend", "torch", "--device", "cpu"]
    assert cli.main(command) == 0
    device, backend, last = lines_of(capsys.readouterr().out)
    assert device.startswith("cpu")
    count = 3 * (len(QUANTITIES) + 1)
    end = r"s, at most \d+% of the tolerance \(\S+, \S+\)"
    assert re.fullmatch(rf"torch   passed: {count} checks in \d+\.\d {end}", backend)
    assert last == f"{count} checks passed, 0 failed"
    assert cli.main([*command, "--verbose"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines[-1] == last
    assert re.fullmatch(r"worst: \S+ \S+ of \S+ allowed \(2x6x7x5/g2 [^)]+\)", lines[-3])
    assert sum(" ok " in line for line in lines) == 3
    assert all(quantity in lines[2] for quantity in QUANTITIES)


def test_check_passes_on_the_real_quick_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--quick", "--verbose", "--backend", "torch", "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("fp32", "fp16", "bf16", "nchw", "nhwc", "random", "peaked", "ties", "relu"))


MUTANTS: dict[str, tuple[Operator, str]] = {  # and what check says of it
    "identity": (mutants.identity, "y-x is off by"),
    "last tie wins": (mutants.last_tie_wins, "dx-dy is off by"),
    "no dscale": (mutants.without_gradient(1), "dscale is off by"),
    "no dv": (mutants.without_gradient(2), "dv is off by"),
    "no dshift": (mutants.without_gradient(4), "dshift is off by"),
    "no db": (mutants.without_gradient(5), "db is off by"),
    "no du": (mutants.without_gradient_through_the_maximum, "dx(A) is off by"),
    "swapped subspaces": (mutants.swapped_subspaces, "A is off by"),
    "slightly wrong": (mutants.slightly_wrong, "A is off by"),
    "refusing": (mutants.refusing, "FAILED: RuntimeError: does not compile"),
}


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_check_fails_for_a_wrong_operator(
    mutant: str, few_cases: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operator, message = MUTANTS[mutant]
    monkeypatch.setattr(check, "operator_of", lambda backend: operator)
    assert cli.main(["check", "--quick", "--backend", "torch", "--device", "cpu"]) == 1
    lines = lines_of(capsys.readouterr().out)
    assert not lines[-1].endswith(" 0 failed")
    assert any(message in line for line in lines)
    assert any(line.startswith("2x6x7x5/g2") and "FAILED" in line for line in lines)
    assert any(line.startswith("torch   FAILED") for line in lines)


@pytest.mark.parametrize("mutant", ["identity", "swapped subspaces", "no du"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("maps", ["random", "peaked"])
def test_gross_mutants_are_seen_in_every_type_and_map(mutant: str, dtype: str, maps: str) -> None:
    operator, message = MUTANTS[mutant]
    problem = cases.Case((2, 12, 28, 28, 3), dtype, "nchw", maps, None).problem(CPU)
    wrong = [measure.quantity for measure in compare(operator, problem) if not measure.passed]
    assert message.removesuffix(" is off by") in wrong


def test_only_ties_see_the_wrong_tie() -> None:
    for maps, seen in (("random", False), ("ties", True)):
        problem = cases.Case((2, 6, 7, 5, 2), "float32", "nchw", maps, None).problem(CPU)
        measures = {measure.quantity: measure for measure in compare(mutants.last_tie_wins, problem)}
        assert measures["A"].passed
        assert measures["dx-dy"].passed is not seen


def test_a_second_run_with_other_bits_fails() -> None:
    problem = cases.Case((1, 4, 5, 5, 2), "float32", "nchw", "random", None).problem(CPU)
    failed = [measure.quantity for measure in compare(mutants.restless(), problem) if not measure.passed]
    assert failed == ["repeat"]


def test_nan_is_wrong() -> None:
    problem = cases.Case((1, 4, 5, 5, 2), "float32", "nchw", "random", None).problem(CPU)

    def operator(x: Tensor, *arguments: Any, **options: Any) -> Any:
        return uf.reference.subspace_attention(x * math.nan, *arguments, **options)

    assert not any(measure.passed for measure in compare(operator, problem) if measure.quantity == "A")


def test_the_case_tables_cover_what_they_promise() -> None:
    full, usual, quick = list(cases.full()), list(cases.usual()), list(cases.quick())
    for table in (full, usual, quick, list(cases.interpreted(quick=False)), list(cases.interpreted(quick=True))):
        assert {case.dtype for case in table} == {"float32", "float16", "bfloat16"}
        assert {case.layout for case in table} == set(cases.LAYOUTS)
        assert {case.maps for case in table} == {"random", "peaked", "ties"}
        assert {case.activation for case in table} == {None, "relu"}
        assert any(case.wide_parameters for case in table)
    assert set(quick) < set(full)
    assert set(usual) < set(full)
    assert {case.shape for case in usual} == {case.shape for case in full} > {case.shape for case in quick}
    assert len(usual) < len(full) / 2
    assert len(full) == len(set(full))
    problem = cases.Case((2, 6, 7, 5, 2), "float32", "channels_last", "ties", None).problem(CPU)
    assert problem.x.is_contiguous(memory_format=torch.channels_last)
    assert set(problem.scale.tolist()) == {-1.0, 0.0, 1.0}


def test_which_table_is_worked_through(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the usual one: every size, within half a minute on two cores."""
    taken: list[str] = []
    for name in ("quick", "usual", "full"):
        monkeypatch.setattr(cases, name, lambda name=name: iter(taken.append(name) or ()))
    for words in ([], ["--quick"], ["--full"]):
        cli.main(["check", "--backend", "torch", "--device", "cpu", *words])
    assert taken == ["usual", "quick", "full"]
    monkeypatch.setattr(check.devices, "interpreted", lambda name, device: True)
    monkeypatch.setattr(cases, "interpreted", lambda quick: iter(taken.append(f"interpreted {quick}") or ()))
    for words in ([], ["--full"]):
        cli.main(["check", "--backend", "torch", "--device", "cpu", *words])
    assert taken[3:] == ["interpreted True", "interpreted False"]
    assert cli.main(["check", "--quick", "--full"]) == 2


def test_progress_is_shown_on_a_terminal_alone(
    few_cases: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "--quick", "--backend", "torch", "--device", "cpu"]
    assert cli.main(words) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("\r\x1b[Ktorch: case 1 of 3\r\x1b[Ktorch: case 2 of 3")
    assert printed.err.endswith("\r\x1b[K")
    assert "case" not in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())


def test_help_says_what_inf_could_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--help"]) == 0
    assert "The error inf is a result that is missing" in capsys.readouterr().out
