"""What a launch executes and asks of memory."""

import collections
import dataclasses
from typing import Any

import numpy as np

from .memory import SEGMENT
from .operands import FLOATS
from .parse import Instruction
from .translate import space_of

FREE = ("mov", "ld.param", "branch")  # not counted: what ptxas mostly takes out, and what the table leaves out


def kind_of(i: Instruction) -> str:
    """The class under which an instruction is counted."""
    op, last = i.op[0], i.op[-1]
    if op in ("ld", "st", "ldmatrix", "stmatrix"):
        return f"{op[:2]}.{space_of(i)}"
    if op in ("bar", "barrier"):
        return "bar.warp" if "warp" in i.op else "bar.sync"
    if op in ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "div", "rem"):
        return "special" if last in FLOATS else "int div"
    named = {"mov": "mov", "createpolicy": "mov", "bra": "branch", "ret": "branch", "exit": "branch", "prmt": "int"}
    named |= {"setp": "compare", "selp": "select", "shfl": "shfl", "redux": "shfl", "cvt": "cvt"}
    if op in named:
        return named[op]
    if last not in FLOATS:
        return "int"
    return {"f64": "fp64", "f32": "fp32", "f32x2": "fp32"}.get(last, "fp16")


@dataclasses.dataclass
class Access:
    """What one memory instruction has asked for."""

    requests: int = 0  # by warps with a lane that takes part
    sectors: int = 0  # of 32 bytes; of shared memory: passes
    least: int = 0  # of shared memory: passes without conflicts
    useful: int = 0  # bytes, each counted once per request


@dataclasses.dataclass
class Counts:
    """Of one launch."""

    module: Any
    addresses: list[int]  # real, of each storage
    warps: int
    instructions: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )  # by class, per warp
    access: dict[int, Access] = dataclasses.field(default_factory=lambda: collections.defaultdict(Access))
    trace: list[tuple[int, bool, np.ndarray]] = dataclasses.field(default_factory=list)
    """(instruction, is store, program << 50 | sector)."""

    @property
    def issued(self) -> int:
        """Instructions, counted for every lane of a warp."""
        return 32 * sum(n for kind, n in self.instructions.items() if kind not in FREE)

    def sector_of(self, sector: int) -> int:
        """The same for the same place in all launches."""
        return (self.addresses[(sector >> (SEGMENT - 5)) - 1] >> 5) + (sector & ((1 << SEGMENT - 5) - 1))

    def coalescing(self, number: int, address: np.ndarray, width: int, mask: np.ndarray | None) -> None:
        counted = self.access[number]
        sectors = _distinct(address >> np.uint64(5), mask)
        counted.requests += int((sectors > 0).sum())
        counted.sectors += int(sectors.sum())
        counted.useful += int(_distinct(address, mask).sum()) * width

    def banks(self, number: int, address: np.ndarray, width: int, mask: np.ndarray | None) -> None:
        """Shared memory gives 32 words a pass, of 32 banks one each."""
        counted = self.access[number]
        size = max(width // 4, 1)
        phase = 32 // size  # lanes served together
        word = (address >> np.uint32(2)).astype(np.int64).reshape(-1, phase)
        part = np.ones(word.shape, bool) if mask is None else mask.reshape(-1, phase)
        words = (word[:, :, None] + np.arange(size)).reshape(len(word), -1)
        words = np.sort(np.where(np.repeat(part, size, axis=1), words, -1), axis=1)
        first = (words >= 0) & np.concatenate((np.ones((len(words), 1), bool), words[:, 1:] != words[:, :-1]), axis=1)
        rows, columns = np.nonzero(first)
        load = np.zeros((len(words), 32), np.int64)
        np.add.at(load, (rows, words[rows, columns] % 32), 1)
        passes = load.max(1)
        counted.requests += int((passes > 0).reshape(-1, 32 // phase).any(1).sum())
        counted.sectors += int(passes.sum())
        counted.least += int((passes > 0).sum())


def _distinct(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """How many distinct values each warp has."""
    by_warp = values.reshape(-1, 32).astype(np.int64)
    if mask is not None:
        by_warp = np.where(mask.reshape(-1, 32), by_warp, -1)
    by_warp = np.sort(by_warp, axis=1)
    changes = (by_warp[:, 1:] != by_warp[:, :-1]) & (by_warp[:, 1:] >= 0)
    found: np.ndarray = (by_warp[:, 0] >= 0).astype(np.int64) + changes.sum(1)
    return found
