"""`ulsam-fused bench`: rows, table, picture, and no time for a wrong provider. No test looks at a time's value."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ulsam_fused as uf
from tests.helpers import mutants
from tests.helpers.fake_gpu import FakeGpu
from ulsam_fused import cli
from ulsam_fused.bench import calls, cases, directions, providers, report, timing
from ulsam_fused.bench.module_accuracy import Yardstick
from ulsam_fused.cli import bench

CPU = torch.device("cpu")


ROW_KEYS = {
    "case",
    "direction",
    "dtype",
    "layout",
    "provider",
    "form",
    "error",
    "us_p50",
    "us_p20",
    "us_p80",
    "gbps",
    "percent_of_ceiling",
    "speedup_vs_eager",
    "speedup_vs_paper_eager",
    "host_us",
    "peak_mem_mb",
    "method",
}


TINY = ["bench", "--device", "cpu", "--backend", "torch", "--case", "2x16x6x5/g4", "--seconds", "0.001"]


def rows_of(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_bench_writes_json_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "b.json", tmp_path / "b.png"
    arguments = ["--layout", "both", "--json", str(out), "--plot", str(picture)]
    assert cli.main(TINY + arguments) == 0
    printed = capsys.readouterr()
    result = json.loads(out.read_text())
    assert set(result) == {"device", "threads", "torch", "triton", "commit", "date", "rows"}
    assert result["torch"] == torch.__version__
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


def test_backward_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.json"
    assert cli.main([*TINY, "--direction", "all", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert list(dict.fromkeys(row["direction"] for row in result["rows"])) == list(directions.DIRECTIONS)
    backward = rows_of(result, direction="backward")
    names = ["add", "eager", "paper-eager", "vectorised", "fused[torch]"]
    assert [row["provider"] for row in backward] == names
    assert all(row["error"] is None and row["us_p50"] > 0 for row in backward)
    moved = 3 * 2 * 16 * 6 * 5 * 4
    for row in backward:
        assert row["gbps"] == pytest.approx(moved / row["us_p50"] / 1e3, rel=0.01, abs=0.011)
    assert "backward: the second half" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("direction", "measured"),
    [("step", ["forward+backward"]), ("both", ["forward", "forward+backward", "train-norm"])],
)
def test_other_names_for_directions(direction: str, measured: list[str], tmp_path: Path) -> None:
    """Rows always say what was measured by its own name."""
    out = tmp_path / "b.json"
    assert cli.main([*TINY, "--direction", direction, "--json", str(out)]) == 0
    assert list(dict.fromkeys(row["direction"] for row in json.loads(out.read_text())["rows"])) == measured


def test_chosen_providers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.json"
    chosen = ["--provider", "fused[torch]", "--provider", "eager"]
    assert cli.main([*TINY, *chosen, "--direction", "forward", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["provider"] for row in rows] == ["copy", "eager", "fused[torch]"]
    assert cli.main([*TINY, "--provider", "quick"]) == 2
    assert "--provider must be one of eager, paper-eager" in capsys.readouterr().err


def test_the_ceiling_moves_as_many_bytes_as_the_work_has_to() -> None:
    """Counted by the operators that it calls, of which each reads its inputs and writes its output once."""

    class Passes(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += {"aten::copy_": 2, "aten::add.out": 3}[func.name()]
            return func(*args, **(kwargs or {}))

    counted = {}
    for name in directions.DIRECTIONS:
        setting = bench.Setting("2x4x3x3/g2", name, "float32", "nchw", CPU)
        move = calls.ceiling(calls.inputs(setting, 1), name)
        with Passes() as passes:
            move(0)
        counted[name] = passes.count
        assert passes.count * 2 * 4 * 3 * 3 * 4 == setting.floor
    assert counted == {"forward": 2, "backward": 3, "forward+backward": 5, "train-norm": 10}


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

    def with_wrong_ones(backends: list[str], compiled: bool) -> list[providers.Provider]:
        return [
            *providers.providers(backends, compiled),
            providers.Provider("identity", "paper", "x itself", lambda sources: nn.Identity()),
            providers.Provider("refusing", "paper", "raises", lambda sources: Refusing()),
        ]

    monkeypatch.setattr(timing, "wall_clock", watch)
    monkeypatch.setattr(bench, "providers", with_wrong_ones)
    out = tmp_path / "b.json"
    assert cli.main([*TINY, "--direction", "forward", "--json", str(out)]) == 1
    result = json.loads(out.read_text())
    (wrong,), (failed,) = rows_of(result, provider="identity"), rows_of(result, provider="refusing")
    assert wrong["error"].startswith("wrong: y-x is off by 1.0e+00")
    assert failed["error"] == "failed: RuntimeError: no such kernel"
    for row in (wrong, failed):
        numbers = ("us_p50", "us_p20", "us_p80", "gbps", "percent_of_ceiling", "speedup_vs_eager")
        assert all(row[key] is None for key in numbers)
    assert timed == ["copy", "eager", "paper-eager", "vectorised", "fused[torch]", "fused[torch]+norm"]
    assert "identity             paper     wrong" in capsys.readouterr().out


def wrong_paper(change: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[providers.Sources], nn.Module]:
    class Wrong(providers.Paper):
        def forward(self, x: Tensor) -> Tensor:
            return change(self, x)

    def build(sources: providers.Sources) -> nn.Module:
        module = Wrong(sources.paper.dw_weight.shape[0], sources.paper.num_splits)
        module.to(sources.paper.dw_weight.dtype).load_state_dict(sources.paper.state_dict())
        return module

    return build


WRONG = {
    "identity": lambda m, x: x + 0 * (m.dw_weight.sum() + m.pw_weight.sum()),
    "swapped": lambda m, x: mutants.swapped_subspaces(x, m.dw_weight, m.pw_weight, m.num_splits),
    "no du": lambda m, x: mutants.without_gradient_through_the_maximum(x, m.dw_weight, m.pw_weight, m.num_splits),
    "half dv": lambda m, x: uf.reference.subspace_attention(
        x, m.dw_weight, (m.pw_weight + m.pw_weight.detach()) / 2, m.num_splits
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", list(WRONG))
def test_the_gate_of_bench_sees_wrong_modules_in_every_type(name: str, dtype: str) -> None:
    setting = bench.Setting("2x64x28x28/g4", "forward+backward", dtype, "nchw", CPU)
    torch.manual_seed(1)
    x, dy = setting.tensor(), setting.tensor()
    sources = providers.Sources.make(x, 4, training=True)
    yardstick = Yardstick.make(sources.paper, x, dy)
    assert yardstick.verdict(sources.paper) is None
    for compiled in (False, True):
        verdict = yardstick.verdict(wrong_paper(WRONG[name])(sources), compiled)
        assert verdict is not None
        assert verdict.startswith("wrong: ")


def test_the_gate_says_when_it_is_blind() -> None:
    x = torch.randn(1, 4, 40, 40).bfloat16()
    sources = providers.Sources.make(x, 1, training=False)
    with torch.no_grad():
        sources.paper.pw_weight.zero_()  # A is 1 / 1600 everywhere
    verdict = Yardstick.make(sources.paper, x, None).verdict(nn.Identity())
    assert verdict == "cannot be judged: y-x is invisible in torch.bfloat16 at this size"


@pytest.mark.parametrize("layout", list(cases.LAYOUTS))
@pytest.mark.parametrize("num_splits", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_providers_compute_their_form(num_splits: int, layout: str, training: bool) -> None:
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64).contiguous(memory_format=cases.LAYOUTS[layout])
    sources = providers.Sources.make(x, num_splits, training)
    with torch.no_grad():
        for subspace in sources.upstream.subspaces:
            for parameter in subspace.parameters():
                parameter.copy_(torch.randn_like(parameter))  # norms that do something
        forms = {"paper": sources.paper(x), "upstream": sources.upstream(x)}
        assert (forms["paper"] - forms["upstream"]).norm() > 0.01
        for provider in providers.providers(["torch"], compiled=False):
            y = provider.build(sources)(x)
            assert (y - forms[provider.form]).norm() < 1e-12 * (y - x).norm(), provider.name
            assert y.stride() == x.stride() or provider.name in ("eager", "paper-eager")


def test_cases_of_the_authors_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size, eager and compiled against ours: forward in eval mode, forward and backward in training mode."""
    monkeypatch.setattr(bench, "CPU_CASES", ("2x8x5x4/g2", "1x6x4x4/g3"))

    def without_compiler(backends: list[str], compiled: bool) -> list[providers.Provider]:
        assert compiled
        return [dataclasses.replace(p, build=original["eager"].build) if p.compiled else p for p in all_of_them]

    all_of_them = providers.providers(["torch"], compiled=True)
    original = {p.name: p for p in all_of_them}
    monkeypatch.setattr(bench, "providers", without_compiler)
    out = tmp_path / "b.json"
    arguments = ["--case", "upstream-eval", "--case", "upstream-train", "--json", str(out)]
    assert cli.main(["bench", "--device", "cpu", "--backend", "torch", "--seconds", "0.001", *arguments]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert list(dict.fromkeys((row["direction"], row["case"]) for row in rows)) == [
        (direction, case) for direction in ("forward", "train-norm") for case in ("2x8x5x4/g2", "1x6x4x4/g3")
    ]
    assert [row["provider"] for row in rows[:4]] == ["copy", "eager", "eager+compile", "fused[torch]+norm"]
    assert all(row["us_p50"] > 0 for row in rows)


def test_a_compiled_provider_leaves_the_plain_one_alone() -> None:
    found = {provider.name: provider for provider in providers.providers([], compiled=True)}
    assert list(found) == ["eager", "paper-eager", "vectorised", "eager+compile", "vectorised+compile"]
    sources = providers.Sources.make(torch.randn(1, 4, 3, 3), 2, training=False)
    compiled = found["eager+compile"].build(sources)
    assert compiled._compiled_call_impl is not None
    assert found["eager"].build(sources)._compiled_call_impl is None


def test_the_interpreter_is_timed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def note(backends: list[str], compiled: bool) -> list[providers.Provider]:
        seen.append(backends)
        return []

    monkeypatch.setattr(bench, "providers", note)
    monkeypatch.setattr(bench.devices.backends, "triton_problem", lambda: None)
    monkeypatch.setattr(bench.devices.backends, "interpreting", lambda: True)
    case = ["bench", "--device", "cpu", "--case", "1x2x3x3/g1", "--seconds", "0.001"]
    assert cli.main(case) == 0
    assert cli.main([*case, "--backend", "triton"]) == 0
    assert seen == [["torch"], ["triton"]]


def test_percentiles() -> None:
    found = timing.Timing.of([float(i) for i in range(1, 12)], "test")
    assert (found.p20, found.p50, found.p80) == (3.0, 6.0, 9.0)


def test_input_sets_leave_nothing_in_a_cache() -> None:
    cuda = torch.device("cuda")
    assert timing.sets_needed(10**6, CPU) == 1
    assert timing.sets_needed(10**7, cuda) == 20
    assert timing.sets_needed(10**9, cuda) == 2
    assert timing.sets_needed(1, cuda) == timing.MOST_SETS


@pytest.mark.parametrize("capturing", [True, False])
def test_device_time_is_that_of_one_call_of_a_sweep_over_all_sets(
    capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, called = FakeGpu(monkeypatch, capturing), set()
    found = timing.device_time(called.add, sets=10, seconds=0)
    assert (found.p20, found.p50, found.p80) == pytest.approx((300, 300, 300))
    assert found.method == ("graph replay, cold" if capturing else "events, host included")
    assert called == set(range(10))
    assert (gpu.replays > 0) is capturing


def test_host_time_ends_in_time_and_after_1000_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, capturing=True)
    called: list[int] = []
    assert timing.host_time(called.append, seconds=0) > 0
    assert len(called) == 10 + 5 * 10
    called.clear()
    timing.host_time(called.append, seconds=1e9)
    assert len(called) == 10 + 1000


def test_a_gpu_measurement_has_host_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, capturing=True)
    monkeypatch.setattr(bench.Setting, "tensor", lambda self, batch=None: torch.ones(batch or 2, 4, 3, 3))
    setting = bench.Setting("2x4x3x3/g2", "forward", "float32", "nchw", torch.device("cuda"))
    timings, extras = bench._measure(setting, {"one": nn.Identity()}, seconds=0)
    assert set(timings) == {"copy", "one"}
    assert extras["one"]["peak_mem_mb"] == 2.5
    assert extras["one"]["host_us"] > 0


def test_the_commit_is_that_of_this_checkout_or_none() -> None:
    found = report.commit()
    assert found is None or found.removesuffix("-dirty").isalnum()


def test_a_gpu_row_shows_host_time_and_memory() -> None:
    setting = bench.Setting("2x16x6x5/g4", "forward", "float16", "nchw", CPU)
    provider = providers.providers(["torch"], compiled=False)[0]
    timings = {name: timing.Timing(us, us, us, "graph replay, cold") for name, us in (("copy", 1.0), ("eager", 4.0))}
    row = report.row(setting, provider, timings, None, {"eager": {"host_us": 12.34, "peak_mem_mb": 5.6}})
    assert (row["percent_of_ceiling"], row["host_us"], row["peak_mem_mb"]) == (25.0, 12.34, 5.6)
    table = report.table({**report.heading(CPU), "rows": [row]}, [provider])
    assert "host us" in table
    assert "12.3" in table
