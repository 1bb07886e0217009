"""The command line as a whole, and `info`."""

import io
import json
import sys
from pathlib import Path

import pytest

import ulsam_fused as uf
from tests.helpers.processes import ROOT, run_python
from ulsam_fused import cli
from ulsam_fused.bench import plot
from ulsam_fused.cli import info


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    bare = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    assert all(f"\n    {name} " in bare for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_explains_itself_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"ulsam-fused {command}" in capsys.readouterr().out.split("examples:")[1]


def test_a_console_that_knows_few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: what it does not know becomes a question mark, and no error."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert cli.main(["count", "--help"]) == 0
    print("\u2717", flush=True)
    console.seek(0)
    said = console.read()
    assert "A²-Net" in said
    assert said.endswith("?\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ulsam-fused {uf.__version__}\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["frob"], "invalid choice: 'frob'"),
        (["info", "--frob"], "unrecognized arguments: --frob"),
        (["check", "--backend", "reference"], "invalid choice: 'reference'"),
        (["check", "--device", "toaster"], "--device must be cpu, cuda or cuda:N, got 'toaster'"),
        (["check", "--device", "cuda:99"], "--device cuda:99"),
        (["bench", "--case", "8x512"], "--case must look like 8x512x14x14/g4"),
        (["bench", "--case", "2x6x3x3/g4"], "6 channels cannot be cut into 4 equal subspaces"),
        (["bench", "--case", "0x6x3x3/g2"], "--case must look like"),
        (["bench", "--seconds", "0"], "--seconds must be above 0"),
        (["bench", "--json", "no/such/folder/x.json"], "there is no folder"),
        (["bench", "--plot", "x.pdf"], "must end in .png"),
        (["attend"], "--demo"),
        (["attend", "x.png", "--demo"], "not both"),
        (["attend", "missing.png"], "missing.png: no such file"),
        (["attend", "x.png", "--num-splits", "5"], "--num-splits must divide the 48 channels"),
        (["attend", "x.png", "--num-splits", "0"], "--num-splits must divide the 48 channels"),
        (["attend", "x.png", "--size", "3"], "--size must be from 32"),
        (["attend", "x.png", "-o", "."], "must end in .png"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("ulsam-fused: error: ")
    assert part in printed.err


@pytest.mark.slow  # a process that imports PyTorch
def test_python_dash_m_runs_the_same(tmp_path: Path) -> None:
    out = run_python(["-m", "ulsam_fused", "info", "--json"], tmp_path, {"PYTHONPATH": str(ROOT)})
    assert json.loads(out)["ulsam_fused"] == uf.__version__


def test_plots_without_matplotlib_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for words in (["bench", "--plot", "x.png"], ["attend", "x.jpg"]):
        assert cli.main(words) == 2
        assert "pip install 'ulsam_fused[plot]'" in capsys.readouterr().err
    assert plot.matplotlib_problem() is not None


def test_info_says_what_auto_takes_and_why_others_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info.backends, "triton_problem", lambda: "Triton cannot be imported (no reason)")
    monkeypatch.setattr(info.backends, "why_not_cpp", lambda device: "there is no C++ compiler")
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    cpu = next(device for device in facts["devices"] if device["device"] == "cpu")
    assert cpu["auto"]["backend"] == "torch"
    assert cpu["backends"] == {
        "triton": "Triton cannot be imported (no reason)",
        "cpp": "there is no C++ compiler",
        "torch": "yes",
        "reference": "yes",
    }
    assert cpu["auto"]["why"] == "there is no C++ compiler"
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert 'backend "auto" takes torch' in text
    assert "no: Triton cannot be imported (no reason)" in text


def test_info_names_the_variable_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info.backends, "_environment", "reference")
    monkeypatch.setenv(info.backends.ENVIRONMENT, "reference")
    facts = info.gather()
    assert facts["environment"][info.backends.ENVIRONMENT] == "reference"
    assert facts["devices"][-1]["auto"] == {"backend": "reference", "why": "asked for by ULSAM_FUSED_BACKEND"}


def test_a_wrong_variable_is_a_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info.backends, "_environment", "frob")
    assert cli.main(["info"]) == 2
    assert "ULSAM_FUSED_BACKEND must be one of" in capsys.readouterr().err
