"""Several runs of `ulsam-fused bench` that make one file of results, which is complete at no time and never wrong.

Every part has a process of its own, so that one that fails or has no time left costs no other part its rows.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.published.schema import GROUP, file_name

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One run of `bench`: its name, and its options."""

    name: str
    options: tuple[str, ...]


def run(command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
    """Exit status (124 when out of time) of a Python command, and its output, which also goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        try:
            status = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file,
                timeout=max(seconds, 1),
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = 124
    return status, log.read_text()


def measure(
    parts: list[Part], folder: pathlib.Path, logs: pathlib.Path, end: float, heading: dict[str, Any]
) -> tuple[pathlib.Path | None, dict[str, int]]:
    """The file of results, written anew after every part, and the exit status of each; `heading` overrides theirs.

    A part that has no time left is not begun; of one that is cut off, the rows that it has written are kept.
    """
    result: dict[str, Any] = {"rows": []}
    path, outcome = None, {}
    for part in parts:
        left = end - time.monotonic()
        if left < 15:
            outcome[part.name] = 124
            continue
        rows = logs / f"rows-{part.name}.json"
        command = ["-m", "ulsam_fused", "bench", *part.options, "--json", str(rows)]
        outcome[part.name], text = run(command, logs / f"bench-{part.name}.log", left)
        print(text if outcome[part.name] == 0 else "\n".join(text.splitlines()[-5:]), flush=True)
        if rows.exists():
            result = joined(result, json.loads(rows.read_text()) | heading)
            path = folder / file_name(result)
            path.write_text(json.dumps(result, indent=1) + "\n")
            rows.unlink()
    return path, outcome


def joined(result: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Both parts' rows under one heading. What was measured twice is taken from the later part, with its ceiling."""

    def group(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(row[key] for key in GROUP)

    again = {group(row) for row in part["rows"]}
    return part | result | {"rows": [row for row in result["rows"] if group(row) not in again] + part["rows"]}


def summary(path: pathlib.Path | None, outcome: dict[str, int]) -> int:
    """Says what came of it; returns the exit status."""
    if path is not None:
        print(f"{len(json.loads(path.read_text())['rows'])} rows: {path}")
    for name, status in outcome.items():
        if status:
            print(f"{name}: {'out of time' if status == 124 else f'exit {status}'}")
    return int(any(outcome.values()))
