"""Runs agreement.py for many targets side by side, each in its own process."""

import concurrent.futures
import json
import os
import pathlib
import time

import torch

from benchmarks import parts
from benchmarks.tuning import agreement
from benchmarks.tuning.configs import Target

SIDE_BY_SIDE = max(1, (os.cpu_count() or 1) - 2)
Verdicts = dict[str, str | None]  # by candidate: what is wrong with it, or None


def judged(
    targets: list[Target], device: torch.device, names: list[list[str]], logs: pathlib.Path, end: float
) -> list[Verdicts]:
    """The verdicts on these candidates of every target; none where time ran out. Triton keeps what was compiled."""

    def one(target: Target, names: list[str]) -> Verdicts:
        return _apart(target, device, names, logs, end)

    if device.type == "cpu":  # the interpreter compiles nothing
        return [dict(agreement.verdicts(target, device)) if time.monotonic() < end else {} for target in targets]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return list(pool.map(one, targets, names))


def _apart(target: Target, device: torch.device, names: list[str], logs: pathlib.Path, end: float) -> Verdicts:
    """In another process. Where it dies, a new one goes on with the candidates that have no verdict."""
    found: Verdicts = {}
    log = logs / f"candidates-{str(target).replace('/', '-').replace(' ', '-')}.log"
    chosen, *others = names
    while time.monotonic() < end and any(name not in found for name in names):
        done = [name for name in others if name in found]
        words = [target.case, target.direction, target.dtype, target.layout, str(device), *done]
        status, text = parts.run(["-m", agreement.__name__, *words], log, end - time.monotonic())
        told = dict(pair for line in text.splitlines() if (pair := _parsed(line)) is not None)
        new = [name for name in told if name not in found]
        found = told | found
        if status == parts.OUT_OF_TIME or found.get(chosen) is not None:  # no time left, or nothing to compare with
            break
        if not new:
            last = (text.strip().splitlines() or ["no output"])[-1]
            found[next(name for name in names if name not in found)] = f"failed: exit {status}: {last}"
    return found


def _parsed(line: str) -> tuple[str, str | None] | None:
    """Name and error, where the line is a verdict."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return (row["name"], row["error"]) if isinstance(row, dict) and set(row) == {"name", "error"} else None
