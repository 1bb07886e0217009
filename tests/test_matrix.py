"""`make matrix`: how its table is written. The runs themselves take hours."""

import sys
from pathlib import Path

import pytest

from tests.helpers.processes import run_main
from tools import matrix

PAGE = f"before\n{matrix.BEGIN}{matrix.END}\nafter\n"


def row(python: str, torch: str, passed: int) -> str:
    return f"| {python} | {torch} | 3.7.1 | {passed} | 0 | 0 | same bits | 2026-01-01 |\n"


def test_a_row_takes_the_place_of_the_same_pair_only() -> None:
    page = matrix.merged(PAGE, [row("3.12.1", "2.13.0+cpu", 1), row("3.9.0", "2.14.0", 2)])
    page = matrix.merged(page, [row("3.12.7", "2.13.0+cu130", 3), row("3.12.1", "2.9.1", 4)])
    table = page.split(matrix.BEGIN)[1].split(matrix.END)[0].splitlines(keepends=True)
    assert table[0] == matrix.HEADING
    assert table[1].count("|") == table[0].count("|")
    assert table[2:] == [row("3.9.0", "2.14.0", 2), row("3.12.1", "2.9.1", 4), row("3.12.7", "2.13.0+cu130", 3)]
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")


def test_the_page_has_a_place_for_it() -> None:
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.merged(page, []).count(matrix.HEADING) == 1


def test_what_pytest_says_is_counted() -> None:
    words = "2 failed, 1467 passed, 6 skipped, 992 deselected, 1 error in 961.37s (0:16:01)"
    assert [matrix.count(words, what) for what in ("passed", "(?:failed|error)", "skipped")] == [1467, 3, 6]
    assert matrix.count("no tests ran in 0.10s", "passed") == 0


def test_a_process_that_fails_is_heard(tmp_path: Path) -> None:
    """pytest fails and says how often; an import that fails says it elsewhere."""
    failing = "print('FAILED a'); print('1 failed'); raise SystemExit(1)"
    assert matrix.said(sys.executable, "-c", failing, cache=tmp_path) == ["FAILED a", "1 failed"]
    assert matrix.said(sys.executable, "-c", "import nowhere_to_be_found", cache=tmp_path)[-1].startswith("ModuleNotF")
    assert matrix.said(sys.executable, "-c", "raise SystemExit(3)", cache=tmp_path) == ["exit status 3"]


def test_a_python_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = matrix.PAGE.read_bytes()
    assert run_main(matrix, "python9.9:2.13.0", "--work", tmp_path) == 1
    assert "python9.9 is not here" in capsys.readouterr().out
    assert matrix.PAGE.read_bytes() == before
