"""Runs the quick tests with other Pythons and PyTorches, and writes what was measured into docs/support.md.

    python -m tools.matrix python3.10:2.10.0 python3.13:2.14.1

Each pair gets a virtual environment of its own, which is deleted afterwards: PyTorch with CUDA fills 5 GB. A row of the
table is replaced by a newer measurement of the same pair, never by anything else.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support.md"
BEGIN, END = "<!-- matrix: written by tools/matrix.py -->\n", "<!-- end of matrix -->"
HEADING = "| Python | PyTorch | Triton | passed | failed | skipped | C++ library | measured |\n"
TOOLS = ("pytest", "pytest-benchmark", "hypothesis", "numpy", "pillow", "matplotlib", "setuptools")
TESTS = ("ops", "kernels", "torch_backend", "conversion", "test_functional.py", "test_modules.py", "test_upstream.py")
"""Of the folder tests/: what touches PyTorch and Triton most."""
VERSIONS = "import platform, torch; print(platform.python_version(), torch.__version__)"
TRITON = "import triton; print(triton.__version__)"


def environment(cache: Path) -> dict[str, str]:
    """Of every process in an environment: nothing is kept, and each compiles its own C++ library."""
    steering = ("PYTHONPATH", "TRITON_INTERPRET", "ULSAM_FUSED_BACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    return kept | {"ULSAM_FUSED_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def said(python: Path | str, *arguments: str, cache: Path) -> list[str]:
    """What a process prints; of one that prints nothing, its complaint."""
    done = subprocess.run(
        [str(python), *arguments], cwd=ROOT, env=environment(cache), capture_output=True, text=True, encoding="utf-8"
    )
    return (done.stdout or done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]


def count(words: str, what: str) -> int:
    """Of pytest's last line, such as "2 failed, 300 passed, 5 skipped in 80.00s"."""
    return sum(int(number) for number in re.findall(rf"(\d+) {what}", words))


def library_answer(python: Path, cache: Path) -> str:
    """Whether the C++ library that this process's PyTorch compiled gives the same bits there."""
    script = ("-m", "tests.kernels.cpu.one_library")
    library, *wanted = said(sys.executable, *script, cache=cache / "here")[-1].split()
    found = said(python, *script, library, cache=cache / "there")[-1].split()
    return "same bits" if wanted and found[1:] == wanted else f"differs: {' '.join(found)}"


def measure(python: str, torch: str, tests: list[str], work: Path, keep: bool) -> str:
    """A row of the table."""
    folder = work / f"{Path(python).name}-torch{torch}"
    inside = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    try:
        if not inside.exists():
            subprocess.run([python, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(inside), "-m", "pip", "install", "-q", f"torch=={torch}", *TOOLS], check=True)
        versions = said(inside, "-c", VERSIONS, cache=folder)[-1].split()
        triton = said(inside, "-c", TRITON, cache=folder)[-1]
        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests)
        *report, words = said(inside, *pytest, cache=folder / "there")
        counts = [count(words, what) for what in ("passed", "(?:failed|error)", "skipped")]
        print(*report * bool(counts[1]), f"{python}, torch {torch}: {words}", sep="\n", flush=True)
        cells = [*versions, triton, *counts, library_answer(inside, folder), date.today().isoformat()]
        return f"| {' | '.join(map(str, cells))} |\n"
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def pair(row: str) -> tuple[tuple[int, ...], ...]:
    """By which rows are told apart and put in order: Python 3.x and PyTorch 2.y.z."""
    python, torch = row.split(" | ")[:2]
    return tuple(map(int, re.findall(r"\d+", python)[:2])), tuple(map(int, re.findall(r"\d+", torch)[:3]))


def merged(page: str, rows: list[str]) -> str:
    """The page with these rows, each in place of the one for the same pair."""
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    old = table.splitlines(keepends=True)[2:]
    found = {pair(row): row for row in (*old, *rows)}
    ruler = re.sub("[^|\n]+", "---", HEADING)
    return before + BEGIN + HEADING + ruler + "".join(found[key] for key in sorted(found)) + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PYTHON:TORCH", help="an interpreter and a version of PyTorch")
    tests = [f"tests/{name}" for name in TESTS]
    parser.add_argument("--tests", nargs="+", default=tests, help="which tests; those marked slow are left out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where environments are made")
    parser.add_argument("--keep", action="store_true", help="leave the environments there, for the next time")
    arguments = parser.parse_args()
    missing = 0
    for each in arguments.pairs:
        python, _, torch = each.partition(":")
        if shutil.which(python) is None:
            print(f"{python} is not here, so torch {torch} was not tried with it", flush=True)
            missing += 1
            continue
        row = measure(python, torch, arguments.tests, arguments.work, arguments.keep)
        PAGE.write_text(merged(PAGE.read_text(encoding="utf-8"), [row]), encoding="utf-8")
        print(row, end="", flush=True)
    return int(missing == len(arguments.pairs))


if __name__ == "__main__":
    sys.exit(main())
