"""What is reported, and which accesses of one place are a race.

Each access has a time, and a lane's last barriers have one, so that two accesses of a place are apart if a barrier lies
between:

    race        two warps of a program, at least one writes, no barrier of the program between
    intra-warp  two threads of a warp likewise, no barrier of any kind between
    programs    two programs of a launch, at least one writes

"same value" is said of a write of what is there already; in shared memory, to which Triton lets threads write copies of
what others write, it is not reported. "in place" is said of a write to global memory after the one load that has read
the place since the last barrier: where a tile has copies in several threads, all of them load, and one stores. The
others' values are used for nothing, as long as they end in stores.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from .memory import Shadow

SEVERAL = -2  # in place of a lane: lanes of several warps
HARMLESS = ("same value", "in place")


@dataclasses.dataclass
class Report:
    kind: str
    kernel: str
    text: str  # of the PTX instruction
    line: int
    source: str
    detail: str  # of the first
    count: int = 1

    @property
    def harmless(self) -> bool:
        return self.kind.endswith(HARMLESS)

    def __str__(self) -> str:
        place = f"PTX {self.line}: {self.text}\n    {self.source}"
        return f"{self.kind} x{self.count} in {self.kernel}: {self.detail}\n    {place}"


@dataclasses.dataclass
class Accesses:
    """Of one instruction: lanes of the launch [lanes, 1] at places [lanes, elements]."""

    shadow: Shadow
    places: np.ndarray
    lane: np.ndarray
    threads: int  # of a program
    fence: np.ndarray  # [lanes, 1], times of the last barrier of the program and of the warp
    warp_fence: np.ndarray
    time: int
    name: str
    report: Callable[[str, int, str, int], None]  # kind, lane, detail, count

    def read(self) -> None:
        s, p = self.shadow, self.places
        self._against(s.w_lane[p], s.w_time[p], "read after write", agreed=s.agreed[p])
        before, first = s.r_lane[p], s.r_first[p]
        shared = (s.r_time[p] > self.fence) & (before != -1) & (before // 32 != self.lane // 32)
        s.r_lane[p] = self.lane
        shared |= s.r_lane[p] // 32 != self.lane // 32
        s.r_lane[p[shared]] = SEVERAL
        s.r_first[p] = np.where((before == -1) | (first <= self.fence), self.time, first)
        s.r_time[p] = self.time

    def write(self, same: np.ndarray | None) -> None:
        """`same` [lanes]: writes what is there."""
        s, p = self.shadow, self.places
        self._against(s.w_lane[p], s.w_time[p], "write after write", same)
        single = None if self.name == "shared" else s.r_first[p] == s.r_time[p]
        self._against(s.r_lane[p], s.r_time[p], "write after read", same, single)
        s.w_lane[p], s.w_time[p] = self.lane, self.time
        last = s.w_lane[p]
        together = np.ones(len(self.lane), bool)  # different values have been reported
        self._against(
            np.where(last == self.lane, -1, last), np.full(p.shape, self.time), "writes together to", together
        )

    def _against(
        self,
        other: np.ndarray,  # lanes that were there before
        time: np.ndarray,
        what: str,
        same: np.ndarray | None = None,
        single: np.ndarray | None = None,
        agreed: np.ndarray | None = None,
    ) -> None:
        there = other != -1
        if not there.any():
            return
        own_program = (other // self.threads == self.lane // self.threads) | (other == SEVERAL)
        own_warp = (other // 32 == self.lane // 32) & (other != SEVERAL)
        recent = there & (time > self.fence) & own_program
        found = {
            "programs": there & ~own_program,
            "race": recent & ~own_warp,
            "intra-warp": recent & own_warp & (other != self.lane) & (time > self.warp_fence),
        }

        def part(kinds: tuple[str, ...], harmless: np.ndarray, name: str) -> None:
            for kind in kinds:
                if not found[kind].any():
                    continue
                found[f"{kind}, {name}"], found[kind] = found[kind] & harmless, found[kind] & ~harmless

        if agreed is not None:
            part(("programs",), agreed, "same value")
        if single is not None:
            part(("race", "intra-warp"), single, "in place")
        if same is not None:
            part(tuple(found), np.broadcast_to(same[:, None], there.shape), "same value")
        for kind, bad in found.items():
            if not bad.any() or (same is not None and self.name == "shared" and kind.endswith("same value")):
                continue
            at = int(np.flatnonzero(bad.any(1))[0])
            column = int(np.flatnonzero(bad[at])[0])
            whose = int(other[at, column])
            before = (
                "several warps"
                if whose == SEVERAL
                else f"thread {whose % self.threads} of program {whose // self.threads}"
            )
            detail = f"{what} {self.name}[{self.places[at, column]}], before by {before}"
            self.report(kind, int(self.lane[at, 0]), detail, int(bad.sum()))
            if kind == "programs, same value" and same is not None:
                self.shadow.agreed[self.places[bad]] = True
