"""Runs `ulsam-fused bench` several times and joins the rows into one file of results.

The file is written after every part, with all rows so far. Each part is a process, so one that fails or runs out of
time costs the other parts nothing.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.published.schema import file_name
from ulsam_fused.bench import rows
from ulsam_fused.bench.rows import Result, workload_of
from ulsam_fused.console import files

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT_OF_TIME = 124  # exit status, as of the command `timeout`


class Part(NamedTuple):
    """One run of `bench`."""

    name: str
    options: tuple[str, ...]


def repeated(option: str, values: Iterable[str]) -> list[str]:
    """The option in front of each value."""
    return [word for value in values for word in (option, value)]


def folders(arguments: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path]:
    """Those of --output and --logs, made."""
    folder: pathlib.Path = arguments.output
    logs: pathlib.Path = arguments.logs or folder
    for made in (folder, logs):
        made.mkdir(parents=True, exist_ok=True)
    return folder, logs


def run(command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
    """Exit status of a Python command, OUT_OF_TIME where it was cut off, and its output, which also goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        try:
            status = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file,
                timeout=max(seconds, 1),
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = OUT_OF_TIME
    return status, log.read_text()


def measure(
    parts: list[Part], folder: pathlib.Path, logs: pathlib.Path, end: float, commit: str | None = None
) -> tuple[pathlib.Path | None, dict[str, int]]:
    """The file of results, None where there are no rows, and the exit status of each part.

    A part that has no time left is not begun. The rows of one that is cut off are kept. `commit` replaces the parts'.
    """
    result: Result | None = None
    path, outcome = None, {}
    for part in parts:
        left = end - time.monotonic()
        if left < 15:
            outcome[part.name] = OUT_OF_TIME
            continue
        output = logs / f"rows-{part.name}.json"
        command = ["-m", "ulsam_fused", "bench", *part.options, "--json", str(output)]
        outcome[part.name], text = run(command, logs / f"bench-{part.name}.log", left)
        print(text if outcome[part.name] == 0 else "\n".join(text.splitlines()[-5:]), flush=True)
        found = next((path for path in (output, files.part(output)) if path.exists()), None)
        if found is not None:
            new = rows.read(found)
            if commit is not None:
                new["commit"] = commit
            result = new if result is None else joined(result, new)
            path = folder / file_name(result)
            files.write_json(path, result)
            found.unlink()
    return path, outcome


def joined(first: Result, second: Result) -> Result:
    """The rows of both under the first one's heading. A workload that both have is the second's, ceiling included."""
    again = {workload_of(row) for row in second["rows"]}
    kept = [row for row in first["rows"] if workload_of(row) not in again]
    return {**first, "rows": kept + second["rows"]}


def summary(path: pathlib.Path | None, outcome: dict[str, int]) -> int:
    """Print the number of rows and what went wrong; return the exit status."""
    if path is not None:
        print(f"{len(rows.read(path)['rows'])} rows: {path}")
    for name, status in outcome.items():
        if status:
            print(f"{name}: {'out of time' if status == OUT_OF_TIME else f'exit {status}'}")
    return int(any(outcome.values()))
