"""`make mutants`: plants each mistake of table.txt in a copy of the repository and runs the tests that must notice it.

    python -m tests.mutants --workers 2 --only state_dict

A mutant is killed when a test fails, or the process crashes or hangs. It lives when all tests pass. Anything else, such
as tests that are not there, is an error of the table. First the same tests must pass on the right code. Outcomes are
kept in a file, by what each of them depends on: a run that was stopped goes on where it was.

mutmut and cosmic-ray were looked at. Neither mutates C++, neither chooses the tests of each mutant, and Triton reads
the source of its kernels, which mutmut's wrappers hide.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from .table import Mutant, read

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1800  # seconds for the tests of one mutant, which take seconds on a quiet machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose name or file contains this")
    parser.add_argument("--results", type=Path, default=ROOT / "out" / "mutants.jsonl", help="what is known, and kept")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    import triton  # noqa: F401  once, for all processes that are forked from this one

    mutants = [m for m in read() if args.only in m.name or args.only in m.file]
    tests = sorted({test for mutant in mutants if not mutant.lives for test in mutant.tests})
    right = [Mutant("the right code", "README.md", "", "", (test,)) for test in tests]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copies = [_copy(Path(scratch) / str(i)) for i in range(args.workers)]
        surprises = _examine(right, copies, args.results)[1]
        outcomes: Counter[str] = Counter()
        if not surprises:
            outcomes, surprises = _examine(mutants, copies, args.results)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{len(mutants)} mutants: {counts}", *surprises, sep="\n")
    return 1 if surprises else 0


def _examine(mutants: list[Mutant], copies: list[Path], results: Path) -> tuple[Counter[str], list[str]]:
    """How often each outcome came, and what was not expected; printed one by one, as they come."""
    outcomes: Counter[str] = Counter()
    surprises = []
    known = (
        {row["key"]: row["outcome"] for row in map(json.loads, results.read_text().splitlines())}
        if results.exists()
        else {}
    )

    def finish(mutant: Mutant, outcome: str, seconds: float) -> None:
        outcomes[outcome] += 1
        line = f"{outcome:<6} {seconds:5.0f} s  {mutant}"
        print(line, flush=True)
        if outcome != ("lives" if mutant.lives or not mutant.old else "killed"):
            surprises.append(f"not expected: {line}")

    waiting, running = list(mutants), {}  # by its copy: what is examined there
    while waiting or running:
        for copy in copies:
            if copy not in running and waiting:
                mutant = waiting.pop(0)
                if _key(mutant) in known:
                    finish(mutant, known[_key(mutant)], 0)
                else:
                    running[copy] = mutant, _start(mutant, copy), time.monotonic()
        time.sleep(0.05)
        for copy, (mutant, process, start) in list(running.items()):
            seconds = time.monotonic() - start
            if process.is_alive() and seconds < LIMIT:
                continue
            process.kill()
            process.join()
            del running[copy]
            shutil.copyfile(ROOT / mutant.file, copy / mutant.file)
            outcome = {0: "lives", 1: "killed"}.get(process.exitcode, "killed" if process.exitcode < 0 else "error")
            finish(mutant, outcome, seconds)
            if outcome != "error":
                with results.open("a") as log:
                    log.write(json.dumps({"key": _key(mutant), "mutant": str(mutant), "outcome": outcome}) + "\n")
    return outcomes, surprises


def _copy(to: Path) -> Path:
    """The files that git tracks, or would, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
    return to


def _start(mutant: Mutant, copy: Path) -> BaseProcess:
    """Its tests, in a process that is forked from this one, where importing PyTorch and Triton is paid for."""
    if mutant.old:
        (copy / mutant.file).write_text(
            mutant.plant((ROOT / mutant.file).read_text(encoding="utf-8")), encoding="utf-8"
        )
    process = multiprocessing.get_context("fork").Process(target=_tests, args=(mutant, copy))
    process.start()
    return process


def _tests(mutant: Mutant, copy: Path) -> None:
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "ulsam_fused")]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    log = os.open(copy.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *mutant.tests])))


def _key(mutant: Mutant) -> str:
    """Of the mistake, the file it is in and its tests: what lies between them is taken to be right."""
    digest = hashlib.sha256(repr((mutant.old, mutant.new, mutant.tests)).encode())
    for name in (mutant.file, *(test.partition("::")[0] for test in mutant.tests)):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
