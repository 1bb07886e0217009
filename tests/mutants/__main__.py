"""`make mutants`: plants each mistake of the table in a copy of the repository and runs the tests that must notice it.

    python -m tests.mutants --workers 2 --only state_dict

A mutant is killed when a test fails or the process crashes or hangs. It lives when all tests pass. Anything else, such
as tests that cannot be collected, is an error of the table. First the same tests must pass on the right code. Results
are kept in a file, by what each of them depends on: a run that was stopped goes on where it was.

mutmut and cosmic-ray were looked at. Neither mutates C++, neither chooses tests for each mutant, and Triton reads the
source of its kernels, which mutmut's wrappers hide.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .table import Mutant, read

ROOT = Path(__file__).resolve().parents[2]
RIGHT = Mutant("the right code", "README.md", "", "", ())
"""In place of a mutant: its tests must pass."""
LIMIT = 1800  # seconds for the tests of one mutant; the slowest need a minute on a quiet machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose name or file contains this")
    parser.add_argument("--results", type=Path, default=ROOT / "out" / "mutants.jsonl", help="what is known, and kept")
    args = parser.parse_args()
    chosen = [m for m in read() if args.only in m.name or args.only in m.file]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    known = _known(args.results)
    outcomes: Counter[str] = Counter()
    surprises = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, args.results.open("a") as log:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for i in range(args.workers):
            copies.put(_copy(Path(scratch) / str(i)))

        def examine(mutant: Mutant) -> tuple[Mutant, str, str, float, bool]:
            key = _key(mutant)
            if key in known:
                return mutant, key, *known[key], False
            copy = copies.get()
            try:
                return mutant, key, *_run(mutant, copy), True
            finally:
                copies.put(copy)

        def finish(mutants: list[Mutant]) -> None:
            with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
                for mutant, key, outcome, seconds, new in pool.map(examine, mutants):
                    if new:
                        log.write(
                            json.dumps({"key": key, "name": mutant.name, "outcome": outcome, "s": seconds}) + "\n"
                        )
                        log.flush()
                    outcomes[outcome] += 1
                    expected = "lives" if mutant.lives or not mutant.old else "killed"
                    if outcome != expected:
                        surprises.append(f"{mutant.name}: {outcome}, {expected} was expected")
                    reason = f"   {mutant.lives}" if mutant.lives else ""
                    where = f"{mutant.file}: " if mutant.old else ""
                    print(f"{outcome:<7} {seconds:6.0f} s  {where}{mutant.name}{reason}", flush=True)

        tests = sorted({test for mutant in chosen if not mutant.lives for test in mutant.tests})
        finish([RIGHT._replace(name=f"{RIGHT.name}: {test}", tests=(test,)) for test in tests])
        if not surprises:
            outcomes.clear()
            finish(chosen)
    print(f"{len(chosen)} mutants: " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    print("\n".join(surprises))
    return 1 if surprises else 0


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


def _run(mutant: Mutant, copy: Path) -> tuple[str, float]:
    """The outcome, and seconds."""
    right = (ROOT / mutant.file).read_text()
    wrong = mutant.plant(right) if mutant.old else right
    place, environment = copy / mutant.file, {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["ULSAM_FUSED_CACHE"] = str(copy.parent / "cpp")
    start = time.monotonic()
    place.write_text(wrong)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT)
        code: int | None = done.returncode
    except subprocess.TimeoutExpired:
        code = None
    finally:
        place.write_text(right)
    if code == 0:
        outcome = "lives"
    elif code is None or code == 1 or code < 0:
        outcome = "killed"
    else:
        outcome = "error"
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return outcome, time.monotonic() - start


def _key(mutant: Mutant) -> str:
    """Of all that decides the outcome but for what the tests reach through other files: those are the right ones."""
    digest = hashlib.sha256(repr((mutant.old, mutant.new, mutant.tests)).encode())
    files = {mutant.file, *(test.partition("::")[0] for test in mutant.tests if not test.startswith("-"))}
    for name in sorted(files):
        if (ROOT / name).is_file():
            digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def _known(results: Path) -> dict[str, tuple[str, float]]:
    if not results.exists():
        return {}
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {row["key"]: (row["outcome"], row["s"]) for row in rows if row["outcome"] != "error"}


if __name__ == "__main__":
    sys.exit(main())
