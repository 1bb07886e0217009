"""The four lines with which `make demo` ends."""

from pathlib import Path
from typing import Any

from benchmarks import demo
from tests.helpers.processes import ROOT


def _row(case: str, direction: str, provider: str, speedup: float | None) -> dict[str, Any]:
    return {"case": case, "direction": direction, "provider": provider, "speedup_vs_eager": speedup}


def _lines(*rows: dict[str, Any]) -> list[str]:
    result: Any = {"device": "a CPU", "threads": 2, "rows": list(rows)}
    return demo.lines(result, Path("out/bench.png"), Path("out/attention.png"))


def test_what_ran_the_speed_up_and_the_pictures() -> None:
    rows = [_row("a", "forward", "eager", 1.0), _row("a", "forward", "fused[cpp]", 99.0)]
    for case, cpp in (("a", 26.31), ("b", 70.7)):
        rows += [_row(case, "forward", "fused[cpp]+norm", cpp), _row(case, "forward", "fused[torch]+norm", 2.0)]
    rows += [_row("a", "train-norm", "fused[cpp]+norm", 8.44), _row("b", "train-norm", "fused[cpp]+norm", None)]
    assert _lines(*rows) == [
        "ran       info, check, bench and attend on a CPU, 2 threads",
        "speed-up  of the authors' module: 26.3 to 70.7x forward, 8.4x in training",
        "times     out/bench.png",
        "maps      out/attention.png",
    ]
    assert _lines()[1].endswith("module: not measured")


def test_the_makefile_ends_with_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.split("\ndemo: ")[1].split("\n\n")[0].splitlines()
    assert "benchmarks.demo out/bench.json out/bench.png out/attention.png" in recipe[-1]
