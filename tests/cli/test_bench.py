"""`ulsam-fused bench`: rows, table, picture, and no time for a wrong provider. No test looks at a time's value."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ulsam_fused import cli
from ulsam_fused.bench import cases, directions, providers, timing
from ulsam_fused.cli import bench

ROW_KEYS = {
    "case", "direction", "dtype", "layout", "provider", "form", "error", "us_p50", "us_p20", "us_p80", "gbps",
    "percent_of_ceiling", "speedup_vs_eager", "speedup_vs_paper_eager", "host_us", "peak_mem_mb", "method",
}  # fmt: skip
TINY = ["bench", "--device", "cpu", "--backend", "torch", "--case", "2x16x6x5/g4", "--seconds", "1e-6"]


def run_to_json(words: list[str], tmp_path: Path, status: int = 0) -> dict[str, Any]:
    """What `bench` writes, ending with this status."""
    assert cli.main([*words, "--json", str(tmp_path / "b.json")]) == status
    found: dict[str, Any] = json.loads((tmp_path / "b.json").read_text())
    return found


def rows_of(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.slow  # measures in two memory formats and draws a picture
def test_bench_writes_json_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "b.png"
    layouts = [word for layout in cases.LAYOUTS for word in ("--layout", layout)]
    result = run_to_json([*TINY, "--verbose", *layouts, "--plot", str(picture)], tmp_path)
    printed = capsys.readouterr()
    assert set(result) == {"device", "threads", "torch", "triton", "commit", "date", "rows"}
    assert result["torch"] == torch.__version__
    assert list(dict.fromkeys(row["direction"] for row in result["rows"])) == list(directions.DEFAULT)
    forward = ["copy", "eager", "paper-eager", "vectorised", "fused[torch]", "fused[torch]+norm"]
    for layout in cases.LAYOUTS:
        assert [row["provider"] for row in rows_of(result, layout=layout, direction="forward")] == forward
        step = [row["provider"] for row in rows_of(result, layout=layout, direction="forward+backward")]
        assert step == ["copy + add", *forward[1:-1]]
        norm = [row["provider"] for row in rows_of(result, layout=layout, direction="train-norm")]
        assert norm == ["2 copies + 2 adds", "eager", "fused[torch]+norm"]
    for row in result["rows"]:
        assert set(row) == ROW_KEYS
        assert row["error"] is None
        assert 0 < row["us_p20"] <= row["us_p50"] <= row["us_p80"]
        assert row["host_us"] is None
        assert row["peak_mem_mb"] is None
        passes = {"forward": 2, "forward+backward": 5, "train-norm": 10}[row["direction"]]
        moved = passes * 2 * 16 * 6 * 5 * 4
        assert row["gbps"] == pytest.approx(moved / row["us_p50"] / 1e3, rel=0.01, abs=0.011)
    for row in rows_of(result, provider="eager"):
        assert row["speedup_vs_eager"] == 1
        assert row["form"] == "upstream"
    for row in rows_of(result, direction="forward+backward", provider="copy + add"):
        assert row["percent_of_ceiling"] == 100
    assert all(provider in printed.out for provider in forward)
    assert "upstream in training mode" in printed.out
    assert "fused[torch]" in printed.err
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # measures five providers in two directions
def test_backward_before_forward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_to_json([*TINY, "--direction", "backward", "--direction", "forward", "--verbose"], tmp_path)
    assert list(dict.fromkeys(row["direction"] for row in result["rows"])) == ["backward", "forward"]
    backward = rows_of(result, direction="backward")
    names = ["add", "eager", "paper-eager", "vectorised", "fused[torch]"]
    assert [row["provider"] for row in backward] == names
    assert all(row["error"] is None and row["us_p50"] > 0 for row in backward)
    moved = 3 * 2 * 16 * 6 * 5 * 4
    for row in backward:
        assert row["gbps"] == pytest.approx(moved / row["us_p50"] / 1e3, rel=0.01, abs=0.011)
    assert "backward: the second half" in capsys.readouterr().out


def test_chosen_providers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--provider", "fused[torch]", "--provider", "eager"]
    rows = run_to_json([*TINY, *chosen, "--direction", "forward"], tmp_path)["rows"]
    assert [row["provider"] for row in rows] == ["copy", "eager", "fused[torch]"]
    assert cli.main([*TINY, "--provider", "quick"]) == 2
    assert "--provider must be one of eager, paper-eager" in capsys.readouterr().err


def test_bench_times_no_wrong_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed: list[str] = []
    wall_clock = timing.wall_clock

    def watch(calls: dict[str, timing.Call], seconds: float) -> dict[str, timing.Timing]:
        timed.extend(calls)
        return wall_clock(calls, seconds)

    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such kernel\nand more")

    def with_wrong_ones(backends: list[str], compiled: bool, onnx: bool) -> list[providers.Provider]:
        return [
            *providers.providers(backends, compiled, onnx),
            providers.Provider("identity", "paper", "x itself", lambda sources: nn.Identity()),
            providers.Provider("refusing", "paper", "raises", lambda sources: Refusing()),
        ]

    monkeypatch.setattr(timing, "wall_clock", watch)
    monkeypatch.setattr(bench, "providers", with_wrong_ones)
    result = run_to_json([*TINY, "--direction", "forward"], tmp_path, status=1)
    (wrong,), (failed,) = rows_of(result, provider="identity"), rows_of(result, provider="refusing")
    assert wrong["error"].startswith("wrong: y-x is off by 1.0e+00")
    assert failed["error"] == "failed: RuntimeError: no such kernel"
    for row in (wrong, failed):
        numbers = ("us_p50", "us_p20", "us_p80", "gbps", "percent_of_ceiling", "speedup_vs_eager")
        assert all(row[key] is None for key in numbers)
    assert timed == ["copy", "eager", "paper-eager", "vectorised", "fused[torch]", "fused[torch]+norm"]
    printed = capsys.readouterr().out.splitlines()
    assert f"identity at 2x16x6x5/g4 forward float32 nchw: {wrong['error']}" in printed
    assert f"refusing at 2x16x6x5/g4 forward float32 nchw: {failed['error']}" in printed


@pytest.mark.slow  # imports PyTorch's compiler
def test_cases_of_the_authors_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every size, eager and compiled against ours: forward in eval mode, forward and backward in training mode."""
    monkeypatch.setattr(bench, "CPU_CASES", ("2x8x5x4/g2", "1x6x4x4/g3"))

    def without_compiler(backends: list[str], compiled: bool, onnx: bool) -> list[providers.Provider]:
        assert compiled
        return [dataclasses.replace(p, build=original["eager"].build) if p.compiled else p for p in all_of_them]

    all_of_them = providers.providers(["torch"], compiled=True)
    original = {p.name: p for p in all_of_them}
    monkeypatch.setattr(bench, "providers", without_compiler)
    words = ["bench", "--device", "cpu", "--backend", "torch", "--seconds", "1e-6"]
    rows = run_to_json([*words, "--case", "upstream-eval", "--case", "upstream-train"], tmp_path)["rows"]
    assert list(dict.fromkeys((row["direction"], row["case"]) for row in rows)) == [
        (direction, case) for direction in ("forward", "train-norm") for case in ("2x8x5x4/g2", "1x6x4x4/g3")
    ]
    assert [row["provider"] for row in rows[:4]] == ["copy", "eager", "eager+compile", "fused[torch]+norm"]
    assert all(row["us_p50"] > 0 for row in rows)
    headings = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("float32  nchw")]
    assert headings == ["2x8x5x4/g2", "1x6x4x4/g3"] * 2


def test_the_interpreter_is_timed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def note(backends: list[str], compiled: bool, onnx: bool) -> list[providers.Provider]:
        seen.append(backends)
        return []

    monkeypatch.setattr(bench, "providers", note)
    monkeypatch.setattr(bench.devices.backends, "triton_problem", lambda: None)
    monkeypatch.setattr(bench.devices.backends, "interpreting", lambda: True)
    monkeypatch.setattr(bench.devices.backends, "why_not_cpp", lambda device: None)
    case = ["bench", "--device", "cpu", "--case", "1x2x3x3/g1", "--seconds", "1e-6"]
    assert cli.main(case) == 0
    assert cli.main([*case, "--backend", "triton"]) == 0
    assert seen == [["cpp", "torch"], ["triton"]]
