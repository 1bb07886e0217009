"""The comparison of launch configurations: what is tried, what is judged wrong, and how its figures are ranked."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import parts, sizes
from benchmarks.published import plots, schema
from benchmarks.tuning import agreement, calls, candidates, configs, processes, table, timing
from tests.helpers.fake_gpu import FakeGpu
from tests.helpers.processes import ROOT, run_main

pytest.importorskip("triton")


TINY = "1x2x8x3/g1"
SMS = (1, 132)


def targets(dtypes: tuple[str, ...] = ("float16", "float32", "bfloat16")) -> Iterator[Any]:
    """All that can be asked for at published sizes."""
    for case, direction, dtype, layout in itertools.product(
        sizes.CASES, configs.DIRECTIONS, dtypes, ("nchw", "channels_last")
    ):
        yield configs.Target(case, direction, dtype, layout)


@pytest.mark.parametrize("num_sms", SMS)
def test_alternatives_are_valid_and_distinct(num_sms: int) -> None:
    for target in targets():
        chosen = configs.chosen(target, num_sms)
        found = configs.alternatives(target, chosen)
        assert len(found) >= 5, target
        assert len({chosen, *found.values()}) == len(found) + 1
        assert configs.CHOSEN not in found
        for candidate in found.values():
            assert configs.valid(candidate.launch, chosen.launch, target)
            if candidate.moments is not None:
                m, (n, _, h, w) = candidate.moments, target.shape
                assert m.part_pixels % m.block_p == 0
                assert (m.parts - 1) * m.part_pixels < n * h * w <= m.parts * m.part_pixels


def changed(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The fields in which they differ: from and to."""
    pairs = {f.name: (getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_name(name: str, of: Any, to: Any) -> None:
    """An alternative differs from the chosen configuration in what its name says, and in nothing else."""
    fields = set(changed(of, to))
    flat = of.block_p * of.block_k, to.block_p * to.block_k
    tile = of.block_c * of.block_w, to.block_c * to.block_w
    factor = 0.5 if "half" in name else 2
    if name == "slab instead of split":
        assert (of.split, to.split, to.strip_rows) == (True, False, 0)
        assert fields == {"split", "strip_rows"}
    elif match := re.fullmatch(r"split, strips of (\d+) rows", name):
        assert (to.split, to.strip_rows) == (True, int(match[1]))
        assert fields <= {"split", "strip_rows"}
    elif match := re.fullmatch(r"(\d) warps?", name):
        assert to.num_warps == int(match[1])
        assert [size * to.num_warps // of.num_warps for size in (flat[0], tile[0])] == [flat[1], tile[1]]
        assert "num_warps" in fields <= {"num_warps", "block_c", "block_p", "block_k"}
    elif "the channels per tile" in name:
        assert (fields, to.block_c) == ({"block_c"}, of.block_c * factor)
    elif match := re.fullmatch(r"tiles (half|twice) as wide, .*", name):
        assert (fields, tile[1]) == ({"block_w", "block_c"}, tile[0])
        assert to.block_w == of.block_w * (0.5 if match[1] == "half" else 2)
    elif name == "half the columns per lane":
        assert (fields, to.columns) == ({"columns"}, of.columns // 2)
    elif name.startswith("strips of ") and name.endswith(" the columns"):
        assert (fields, to.strip_columns) == ({"strip_columns"}, -int(-of.strip_columns * factor // 1))
    elif name in ("flat tile half", "flat tile twice"):
        assert len(fields) == 1
        assert fields <= {"block_p", "block_k"}
        assert flat[1] == flat[0] * factor
    elif name.startswith("flat tile with runs"):
        assert (fields, flat[1]) == ({"block_p", "block_k"}, flat[0])
    else:
        match = re.fullmatch(r"(\d+) registers", name)
        assert match, name
        assert (fields, to.max_registers) == ({"max_registers"}, int(match[1]))


def check_moments_name(name: str, of: Any, to: Any) -> None:
    factor = 0.5 if "half" in name else 2
    if name.endswith("the programs"):
        assert set(changed(of, to)) <= {"parts", "part_pixels"}
        assert (to.parts > of.parts) == (factor == 2)
    elif match := re.fullmatch(r"\w+ the (pixels|channels) per tile", name):
        field = {"pixels": "block_p", "channels": "block_c"}[match[1]]
        assert changed(of, to) == {field: (getattr(of, field), getattr(of, field) * factor)}
    else:
        assert changed(of, to) == {"max_registers": (of.max_registers, int(name.split()[0]))}


@pytest.mark.parametrize("num_sms", SMS)
def test_alternatives_are_what_their_names_say(num_sms: int) -> None:
    for target in targets():
        chosen = configs.chosen(target, num_sms)
        for name, candidate in configs.alternatives(target, chosen).items():
            (field,) = changed(chosen, candidate)  # one respect
            if field == "moments":
                check_moments_name(name.removeprefix("moments: "), chosen.moments, candidate.moments)
            elif name.endswith("the programs of flat passes"):
                assert list(changed(chosen.launch, candidate.launch)) == ["flat_programs"]
                times = candidate.launch.flat_programs / chosen.launch.flat_programs
                assert (name.split()[0], times) in {("half", 0.5), ("twice", 2.0)}
            else:
                check_name(name, chosen.launch, candidate.launch)


def test_both_regimes_are_tried() -> None:
    """Wherever a map has more rows than one strip."""
    for target in targets(("float16",)):
        names = configs.alternatives(target, configs.chosen(target, 132))
        launch = configs.chosen(target, 132).launch
        if target.shape[2] > configs.ROWS:
            other = "slab instead of split" if launch.split else f"split, strips of {configs.ROWS} rows"
            assert other in names, target


def test_what_matters_most_comes_first() -> None:
    arguments = dict.fromkeys(("case", "direction", "dtype", "layout"))
    found = candidates.targets(candidates.argparse.Namespace(**arguments))
    assert len(set(found)) == len(found) == len(sizes.CASES) * 4 * 2
    half = len(found) // 2
    assert {target.direction for target in found[:half]} == {"forward", "backward"}
    assert list(dict.fromkeys(target.case for target in found[:half])) == list(sizes.CASES)


def row(name: str, us: float | None, case: str = "c", error: str | None = None, over: float = 100.0) -> dict[str, Any]:
    return {
        "case": case, "direction": "forward", "dtype": "float16", "layout": "nchw", "name": name, "us_p50": us,
        "ratio": None if us is None else us / over, "error": error,
    }  # fmt: skip


ROWS = [
    row("chosen", 100.0), row("8 warps", 98.0), row("slab", None, error="wrong: y is off"),
    row("chosen", 100.0, "d"), row("8 warps", 80.0, "d"), row("2 warps", 90.0, "d"),
    row("chosen", 100.0, "e"), row("8 warps", 130.0, "e"),
    row("chosen", None, "f", error="failed"), row("8 warps", None, "f"),
    row("chosen", 100.0, "g"),
]  # fmt: skip


def test_ranking() -> None:
    found = [(line.target.case, line.name, round(line.gain, 3)) for line in table.best(ROWS)]
    assert found == [("d", "8 warps", 0.2), ("c", "8 warps", 0.02), ("g", None, 0.0), ("e", "8 warps", -0.3)]
    (first, second) = table.over_sizes(ROWS)
    assert (first.name, first.sizes) == ("forward float16 nchw: 2 warps", 1)
    assert (second.sizes, second.least, second.most) == (3, 0.8, 1.3)
    assert second.mean == pytest.approx((0.98 * 0.8 * 1.3) ** (1 / 3))


def test_small_gains_are_called_noise() -> None:
    lines = table.text(ROWS).splitlines()
    (noise,) = (i for i, line in enumerate(lines) if "which are noise" in line)
    place = {case: i for i, line in enumerate(lines) for case in "cdeg" if line.startswith(f"  {case} forward")}
    assert place["d"] < noise < min(place["c"], place["e"], place["g"])
    assert any("slab: wrong: y is off" in line for line in lines)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> str:
    """A candidate whose strips overlap, so that rows count twice in the softmax; its name. Another one is right."""

    def alternatives(target: Any, chosen: Any) -> dict[str, Any]:
        launch = dataclasses.replace(chosen.launch, split=True, strip_rows=4)
        right = dataclasses.replace(chosen.launch, max_registers=128)
        return {"overlapping": configs.Candidate(launch), "128 registers": configs.Candidate(right)}

    monkeypatch.setattr(calls, "alternatives", alternatives)
    return "overlapping"


@pytest.mark.slow  # six launches in the interpreter
def test_a_wrong_candidate_is_noticed(wrong: str, device: str) -> None:
    for layout in ("nchw", "channels_last"):
        found = dict(agreement.verdicts(configs.Target(TINY, "forward", "float16", layout), torch.device(device)))
        assert list(found) == ["chosen", wrong, "128 registers"]
        assert re.match("wrong: (y|A) is off", found[wrong])
        assert found["chosen"] is found["128 registers"] is None


def test_a_failing_candidate_is_told(wrong: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = calls.Work.run

    def failing(work: Any, candidate: Any, *arguments: Any, **options: Any) -> Any:
        if candidate.launch.strip_rows == 4:
            raise RuntimeError("out of resources\nand more")
        return run(work, candidate, *arguments, **options)

    monkeypatch.setattr(calls.Work, "run", failing)
    found = dict(agreement.verdicts(configs.Target(TINY, "forward", "float16", "nchw"), torch.device(device)))
    assert found == {"chosen": None, wrong: "failed: RuntimeError: out of resources", "128 registers": None}


interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="tries the script in the interpreter")


@interpreted
def test_a_dry_run(wrong: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--device", "cpu", "--case", TINY, "--direction", "forward", "--layout", "nchw", "--commit", "0123abc")
    assert run_main(candidates, "--output", tmp_path / "out", *options) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.name.startswith("candidates-cpu-")
    result = json.loads(path.read_text())
    assert {"device", "torch", "triton", "commit", "date"} <= set(result)
    assert result["commit"] == "0123abc"
    rows = {row["name"]: row for row in result["candidates"]}
    assert list(rows) == ["chosen", wrong, "128 registers"]
    assert rows[wrong]["us_p50"] is rows[wrong]["ratio"] is None
    assert rows[wrong]["error"].startswith("wrong: ")
    assert rows["chosen"]["ratio"] == 1
    assert rows["128 registers"]["us_p20"] <= rows["128 registers"]["us_p50"] <= rows["128 registers"]["us_p80"]
    assert rows["128 registers"]["config"]["launch"]["max_registers"] == 128
    printed = capsys.readouterr().out
    assert "these times say nothing" in printed
    assert f"{wrong}: wrong: " in printed
    # a file of candidates among published figures is refused by the one script, and no figure to the others
    assert "keys are" in schema.problems(result, path.name)[0]
    assert plots.published(path.parent) == []
    assert plots.problems(path.parent) == []


@interpreted
def test_without_time_nothing_is_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(candidates, "--output", tmp_path, "--device", "cpu", "--case", TINY, "--seconds", 0) == 1
    assert "no time was left for 8 targets" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_published_figures_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main(candidates, "--output", ROOT / "benchmarks" / "results")
    assert "choose another --output" in capsys.readouterr().err


@pytest.mark.slow  # runs each kernel in the interpreter
@pytest.mark.parametrize("direction", configs.DIRECTIONS)
def test_every_direction_agrees_with_itself(direction: str, device: str) -> None:
    target = configs.Target("2x4x3x3/g2", direction, "float16", "nchw")
    work = calls.Work.make(target, torch.device(device), sets=1)
    chosen = configs.chosen(target, 1)
    results = work.run(chosen, 0, attention=True)
    first = {"forward": {"y", "A"}, "norm-forward": {"y", "A"}}
    assert first.get(direction, {"dx"}) <= set(results)
    if direction == "norm-backward":
        launch = dataclasses.replace(chosen.launch, flat_programs=2 * chosen.launch.flat_programs)
        chosen = dataclasses.replace(chosen, launch=launch)
    assert agreement.disagreement(work.run(chosen, 0), results) is None
    for name, t in results.items():
        spoilt = results | {name: t + 0.1 * t.abs().max()}
        assert agreement.disagreement(spoilt, results).startswith(f"wrong: {name}")
        assert agreement.disagreement(results | {name: t * float("nan")}, results) is not None


@pytest.mark.slow  # a process that imports PyTorch and Triton
def test_judged_in_another_process(tmp_path: pathlib.Path, device: str) -> None:
    target = configs.Target("1x2x2x2/g1", "forward", "float16", "nchw")
    names = list(calls.candidates(target, torch.device(device)))
    found = processes._apart(target, torch.device(device), names, tmp_path, processes.time.monotonic() + 300)
    assert found == dict.fromkeys(names)


def test_a_process_that_dies_takes_one_candidate_with_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a lost context none but the one that lost it."""
    names = ["chosen", "fine", "deadly", "lost", "last"]

    def run(command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
        done = command[6:]
        text = json.dumps({"name": "chosen", "error": None}) + "\n"
        for name in names[1:]:
            if name in done:
                continue
            if name == "deadly":
                return -11, text + "something else\nSegmentation fault\n"
            text += json.dumps({"name": name, "error": "failed: illegal address" if name == "lost" else None}) + "\n"
            if name == "lost":
                return agreement.BROKEN, text
        return 0, text

    monkeypatch.setattr(parts, "run", run)
    target = configs.Target(TINY, "forward", "float16", "nchw")
    found = processes._apart(target, torch.device("cuda"), names, tmp_path, processes.time.monotonic() + 300)
    assert found == {
        "chosen": None, "fine": None, "deadly": "failed: exit -11: Segmentation fault",
        "lost": "failed: illegal address", "last": None,
    }  # fmt: skip
    monkeypatch.setattr(parts, "run", lambda *_: (124, json.dumps({"name": "chosen", "error": None})))
    (found,) = processes.judged([target], torch.device("cuda"), [names], tmp_path, processes.time.monotonic() + 300)
    assert found == {"chosen": None}


@pytest.mark.parametrize("capturing", [True, False])
def test_candidates_are_timed_in_turn(capturing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, capturing)
    called: list[str] = []

    def broken(i: int) -> None:
        raise RuntimeError("no resources")

    tried = {"chosen": lambda i: called.append("chosen"), "other": lambda i: called.append("other"), "broken": broken}
    times, errors = timing.in_turn(tried, 3, 0.0, torch.device("cuda"))
    assert errors == {"broken": "failed: RuntimeError: no resources"}
    assert {name: t.p50 for name, t in times.items()} == {"chosen": 1000.0, "other": 1000.0}
    method = "graph replay, cold, in turn" if capturing else "events, host included, in turn"
    assert {t.method for t in times.values()} == {method}
    assert gpu.replays == (2 * (1 + timing.timing.ROUNDS[0]) if capturing else 0)
    if not capturing:
        turns = [name for name, _ in itertools.groupby(called[-6 * timing.timing.ROUNDS[0] :])]
        assert turns[:4] == ["chosen", "other", "chosen", "other"]
