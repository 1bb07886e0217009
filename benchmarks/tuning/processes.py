"""Verdicts on many groups, side by side, each in a process of its own."""

import concurrent.futures
import json
import os
import pathlib
import time

import torch

from benchmarks import parts
from benchmarks.tuning import agreement as candidate_verdicts
from benchmarks.tuning.configs import Group

SIDE_BY_SIDE = max(1, (os.cpu_count() or 1) - 2)
MODULE = "benchmarks.tuning.agreement"
Verdicts = dict[str, str | None]  # of candidates by name: what is wrong, or None


def judged(
    groups: list[Group], device: torch.device, names: list[list[str]], logs: pathlib.Path, end: float
) -> list[Verdicts]:
    """Of every group, with these candidates. Compiles them, too; what there was no time for has no verdict."""

    def one(group: Group, names: list[str]) -> Verdicts:
        return _apart(group, device, names, logs, end)

    if device.type == "cpu":  # the interpreter compiles nothing
        return [dict(candidate_verdicts.verdicts(group, device)) if time.monotonic() < end else {} for group in groups]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return list(pool.map(one, groups, names))


def _apart(group: Group, device: torch.device, names: list[str], logs: pathlib.Path, end: float) -> Verdicts:
    """In another process, and in the next where that one dies, until all candidates have a verdict."""
    found: Verdicts = {}
    log = logs / f"candidates-{str(group).replace('/', '-').replace(' ', '-')}.log"
    chosen, *others = names
    while time.monotonic() < end and any(name not in found for name in names):
        done = [name for name in others if name in found]
        words = [group.case, group.direction, group.dtype, group.layout, str(device), *done]
        status, text = parts.run(["-m", MODULE, *words], log, end - time.monotonic())
        told = dict(pair for line in text.splitlines() if (pair := _parsed(line)) is not None)
        new = [name for name in told if name not in found]
        found = told | found
        if status == 124 or found.get(chosen) is not None:  # no time, or nothing to compare with
            break
        if not new:
            last = (text.strip().splitlines() or ["no output"])[-1]
            found[next(name for name in names if name not in found)] = f"failed: exit {status}: {last}"
    return found


def _parsed(line: str) -> tuple[str, str | None] | None:
    """Name and error of a line that is a verdict."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return (row["name"], row["error"]) if isinstance(row, dict) and set(row) == {"name", "error"} else None
