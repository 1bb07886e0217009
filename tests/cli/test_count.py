"""`ulsam-fused count`: the paper's figures and ours side by side, and what may not agree in silence."""

import dataclasses
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import ROOT
from ulsam_fused import cli
from ulsam_fused.console import count_tables
from ulsam_fused.console.count_tables import Compared
from ulsam_fused.models import published

BEGIN, END = "<!-- count-table -->\n", "<!-- /count-table -->"


def counting(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs the counts of all published networks; one worker makes them once."""
    return pytest.mark.slow(pytest.mark.xdist_group("count")(test))


@pytest.fixture(scope="module")
def lines() -> list[Compared]:
    return count_tables.compared()


def run_to_json(words: list[str], tmp_path: Path) -> dict[str, Any]:
    assert cli.main(["count", *words, "--json", str(tmp_path / "out.json")]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    return found


@counting
def test_all_published_figures_but_one_are_reproduced(lines: list[Compared]) -> None:
    assert len(lines) == 27
    off = [line for line in lines if not line.agrees]
    assert [(line.row.variant, str(line.row.macs), line.weights.agrees) for line in off] == [
        ("replaced D", "224.16", True)
    ]
    assert off[0].row.note
    assert not any(line.row.note for line in lines if line.agrees)


@counting
def test_exact_counts(lines: list[Compared]) -> None:
    """By hand: a block of width w at h x h, of expansion 6, has 12 w² + 54 w weights; a ULSAM 2 w."""
    counts = {(line.row.backbone, line.row.width, line.row.variant): line for line in lines}

    def differences(*key: Any) -> tuple[Decimal | None, Decimal | None]:
        line = counts[key]
        return line.weights.our_difference, line.macs.our_difference

    def million(n: int) -> Decimal:
        return Decimal(n).scaleb(-6)

    def replaced(*blocks: tuple[int, int]) -> tuple[Decimal, Decimal]:
        saved = [12 * w * w + 54 * w - 2 * w for w, _ in blocks]
        return million(-sum(saved)), million(-sum(s * h * h for s, (_, h) in zip(saved, blocks, strict=True)))

    vanilla = counts["MobileNet-V2", 1.0, "vanilla"]
    assert (vanilla.weights.ours, vanilla.macs.ours) == (million(3_469_760), million(300_774_272))
    assert counts["MobileNet-V1", 1.0, "vanilla"].macs.ours == million(568_740_352)
    w64, w96, w160 = (64, 14), (96, 14), (160, 7)
    for letter, blocks in {
        "A": [w96], "B": [w160], "C": [w96, w160], "D": [w96] * 2 + [w160] * 2, "E": [w64, w96], "F": [w160] * 2,
    }.items():  # fmt: skip
        assert differences("MobileNet-V2", 1.0, f"replaced {letter}") == replaced(*blocks), letter
    for width in (1.0, 0.75, 0.5):
        w = int(512 * width)
        saved = w * w + 9 * w - 2 * w
        assert differences("MobileNet-V1", width, "replaced") == (million(-saved), million(-saved * 196))
    assert differences("MobileNet-V1", 1.0, "+ULSAM row 1") == (million(1024), million(1024 * 196))
    assert differences("MobileNet-V1", 1.0, "+ULSAM row 3") == (million(2048), million(2048 * 49))
    assert differences("MobileNet-V2", 1.0, "+ULSAM") == (million(320), million(320 * 49))


@pytest.mark.parametrize(
    ("printed", "difference", "ours", "agrees"),
    [
        ("277.34", "-22.66", "-22.6500", True),
        ("277.34", "-22.66", "-22.6499", False),
        ("517", "-52", "-53", True),
        ("517", "-52", "-53.01", False),
    ],
)
def test_agreement_is_one_unit_of_the_last_digit(printed: str, difference: str, ours: str, agrees: bool) -> None:
    changed = published.Figure(Decimal(printed), Decimal(0), Decimal(difference), Decimal(ours))
    assert changed.agrees == agrees
    shift = Decimal(ours) - Decimal(difference)
    assert published.Figure(Decimal(printed), Decimal(printed) + shift, None, None).agrees == agrees


@counting
def test_text_and_json_have_a_line_for_each_published_one(
    tmp_path: Path, lines: list[Compared], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_to_json([], tmp_path)["models"]
    table, legend = capsys.readouterr().out.split("\n\n", 1)
    legend = " ".join(legend.split())
    shown = table.splitlines()[1:]
    assert len(shown) == len(rows) == len(lines)
    for text, line in zip(shown, lines, strict=True):
        assert text.startswith(line.row.backbone)
        assert line.row.dataset in text
        assert f" {line.row.macs} / {line.macs.ours:.2f} " in text
        assert text.endswith("yes" if line.agrees else "NO")
    assert "26 of 27" in legend
    assert "224.16 M: the same model is printed with 223.77" in legend
    d = next(row for row in rows if row["published_macs_M"] == 223.77)
    assert (d["weights"], d["macs"]) == (3_469_760 - 862_208, 300_774_272 - 76_229_888)
    assert d["replace"] == {"13": 4, "14": 4, "16": 4, "17": 4}
    assert d["weights_agree"]
    assert d["macs_agree"]


@counting
def test_a_new_disagreement_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = published.rows()
    wrong = [dataclasses.replace(row, params=row.params + (1 if row.variant == "replaced A" else 0)) for row in right]
    assert wrong != right
    monkeypatch.setattr(published, "rows", lambda: wrong)
    assert cli.main(["count"]) == 1
    assert "25 of 27" in capsys.readouterr().out


@counting
def test_markdown_joins_what_is_printed_alike_and_stands_in_the_page_of_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["count", "--markdown"]) == 0
    text = capsys.readouterr().out
    rows = [row for row in text.splitlines() if row.startswith("| MobileNet")]
    assert len(rows) == len(set(rows)) == 20
    assert "| MobileNet-V1 | in place of 11 | 4, 8, 16 |" in text
    assert [row for row in rows if "✗" in row] == [row for row in rows if "224.16" in row]
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0] == text


@pytest.mark.slow  # traces six modules
def test_attention_modules_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["module"]: row for row in run_to_json(["--modules"], tmp_path)["modules"]}
    assert "convolutions" in capsys.readouterr().out
    c, p, r = 512, 14 * 14, 512 // 16
    expected = {  # weights, MACs
        "non-local": (2 * c * c, 2 * c * c * p + 2 * p * p * c // 2),
        "A²-Net": (c * c, c * c * p + 2 * p * (c // 4) ** 2),
        "SE": (2 * c * r, 2 * c * r),
        "BAM": (3 * c * r + 18 * r * r + r, 2 * c * r + (c * r + 18 * r * r + r) * p),
        "CBAM": (2 * c * r + 98, 4 * c * r + 98 * p),
        "ULSAM": (2 * c, 2 * c * p),
    }
    assert {name: (row["weights"], row["macs"]) for name, row in rows.items()} == expected
    theirs = published.MODULE
    assert rows["ULSAM"]["weights"] / 1e6 == pytest.approx(float(theirs["params_M"]), abs=0.0005)
    assert rows["ULSAM"]["macs"] / 1e6 == pytest.approx(float(theirs["macs_M"]), abs=0.05)


@pytest.mark.slow  # counts two networks
@pytest.mark.parametrize("attention", ["paper", "upstream"])
def test_ones_own_model(attention: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "mobilenet_v2", "--insert", "17=4,5=2", "--replace", "14=8", "--attention", attention]
    found = run_to_json([*words, "--size", "96", "--width", "0.5"], tmp_path)
    plain = found["without_ulsam"]
    assert (found["insert"], found["replace"]) == ({"5": 2, "17": 4}, {"14": 8})
    w = 48
    saved = 12 * w * w + 54 * w - 2 * w
    assert found["weights"] - plain["weights"] == 2 * 80 + 2 * 16 - saved
    assert found["macs"] - plain["macs"] == 2 * 80 * 3 * 3 + 2 * 16 * 12 * 12 - saved * 6 * 6
    norms = 2 * 6 * w * 2 + 2 * w
    extra = 0 if attention == "paper" else 3 * (80 + 16 + w) + 3 * (4 + 2 + 8)  # a bias and a norm for each channel
    assert found["parameters"] - plain["parameters"] == 2 * 80 + 2 * 16 - saved - norms + extra
    printed = capsys.readouterr().out
    assert "ULSAM after layers 5 (g=2), 17 (g=4), ULSAM in place of layer 14 (g=8)" in printed
    assert f"{found['macs']:,}" in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--insert", "17=4"], "--insert needs --model, one of mobilenet_v1, mobilenet_v2"),
        (["--size", "96"], "--size needs --model"),
        (["--model", "resnet"], "invalid choice: 'resnet'"),
        (["--model", "mobilenet_v2", "--insert", "17"], "--insert must look like 17=4 (layer = subspaces), got '17'"),
        (["--model", "mobilenet_v2", "--insert", "17=4", "--insert", "17=2"], "--insert names layer 17 twice"),
        (["--model", "mobilenet_v2", "--replace", "8=4"], "that can be replaced: 4, 6, 7, 9, 10, 11, 13, 14, 16, 17"),
        (["--model", "mobilenet_v2", "--replace", "14=7"], "96 is not divisible by 7"),
        (["--model", "mobilenet_v2", "--width", "0"], "width must be above 0"),
        (["--model", "mobilenet_v2", "--size", "31"], "--size must be from 32 to 4096, got 31"),
        (["--model", "mobilenet_v2", "--modules"], "--model and --modules do not go together"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["count", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert part in printed.err
