"""Runs a translated kernel: lanes, warps, barriers, memory. What it watches for is in `races`.

Several programs run at once, in step: another order than a GPU's, but a possible one.
"""

import collections
from typing import Any

import numpy as np

from . import arithmetic
from .arithmetic import i4, i8, u1, u2, u4, u8
from .counts import Counts, kind_of
from .memory import SEGMENT, Segment, Shadow
from .parse import Kernel
from .races import Accesses, Report
from .translate import Translator

MAX_LANES = 8192
Lanes = Any  # an array [lanes]
Mask = Any  # an array of bool [lanes], or None: all
Reports = dict[tuple[str, str, int, str], Report]


class Module:
    """A compiled kernel, translated."""

    def __init__(self, kernel: Kernel, shared: int, threads: int, constants: dict[str, Any]) -> None:
        self.kernel, self.shared, self.threads = kernel, shared, threads  # shared: bytes
        self.constants = constants  # of the source: tl.constexpr, None and 1
        translator = Translator(kernel)
        self.instructions = translator.instructions
        self.run = translator.function()
        self.kinds = [collections.Counter(map(kind_of, block)) for block in kernel.blocks]


class Machine:
    """One launch."""

    def __init__(
        self,
        module: Module,
        grid: tuple[int, int, int],
        arguments: list[Any],
        segments: list[Segment],
        reports: Reports,
        *,
        races: bool,
        counts: bool,
    ) -> None:
        self.module, self.grid, self.arguments, self.segments, self.reports = module, grid, arguments, segments, reports
        self.races, self.counting = races, counts
        self.threads = module.threads
        self.programs = grid[0] * grid[1] * grid[2]
        self.counts = Counts(module, [s.pointer for s in segments], self.programs * self.threads // 32)
        self.time = 0

    def run(self) -> Counts:
        batch = max(MAX_LANES // self.threads, 1)
        self.block_warps = np.zeros(len(self.module.kernel.blocks), i8)
        with np.errstate(all="ignore"):
            for first in range(0, self.programs, batch):
                self._batch(first, min(batch, self.programs - first))
        for n, kinds in zip(self.block_warps.tolist(), self.module.kinds, strict=True):
            for kind, k in kinds.items():
                self.counts.instructions[kind] += n * k
        return self.counts

    def _batch(self, first: int, programs: int) -> None:
        t = self.threads
        self.lanes = programs * t
        self.warps = self.lanes // 32
        self.local = np.repeat(np.arange(programs, dtype=i8), t)  # program in this batch
        self.lane = (np.arange(self.lanes) + first * t).astype(i4)  # in the launch
        self.fulls: dict[tuple[bytes, Any], Lanes] = {}
        self.shuffles: dict[tuple[str, bytes, bytes], tuple[Lanes, Lanes]] = {}
        program, (x, y, _) = self.local + first, self.grid
        self.specials = {
            "%tid.x": np.tile(np.arange(t, dtype=u4), programs),
            "%ctaid.x": (program % x).astype(u4),
            "%ctaid.y": (program // x % y).astype(u4),
            "%ctaid.z": (program // (x * y)).astype(u4),
            "%laneid": np.tile(np.arange(32, dtype=u4), self.warps),
            "%ntid.x": self.full(u4(t)),
            **{f"%tid.{axis}": self.full(u4(0)) for axis in "yz"},
            **{f"%nctaid.{axis}": self.full(u4(n)) for axis, n in zip("xyz", self.grid, strict=True)},
        }
        self.barrier_time, self.warp_time = np.full(self.lanes, -1, i4), np.full(self.lanes, -1, i4)
        self.pitch = -(-self.module.shared // 16) * 16  # bytes of shared memory from program to program
        memory = np.zeros(programs * self.pitch + 16, u1)
        self.shared = {s: memory.view(f"u{s}") for s in (1, 2, 4, 8)}
        self.shared_shadow = Shadow(len(memory))
        self.module.run(self)

    # --- small things -----------------------------------------------------------------------------------------------

    def zeros(self, kind: type[Any]) -> Lanes:
        return self.full(np.zeros((), kind)[()])

    def full(self, value: Any) -> Lanes:
        """A numpy scalar for all lanes, kept; nothing writes into it."""
        key = (value.tobytes(), value.dtype)
        if key not in self.fulls:
            self.fulls[key] = np.full(self.lanes, value)
        return self.fulls[key]

    def param(self, index: int, kind: type[Any]) -> Lanes:
        value, size = self.arguments[index], np.dtype(kind).itemsize
        raw = (
            np.float32(value).tobytes()
            if isinstance(value, float)
            else (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        )
        return self.full(np.frombuffer(raw, kind)[0])

    def report(self, kind: str, number: int, lane: int, detail: str, count: int = 1) -> None:
        i = self.module.instructions[number]
        key = (kind, self.module.kernel.name, i.line, i.text)
        if key in self.reports:
            self.reports[key].count += count
            return
        where = f"program {lane // self.threads} of {self.grid}, thread {lane % self.threads}: "
        self.reports[key] = Report(kind, self.module.kernel.name, i.text, i.line, i.source, where + detail, count)

    def _report_first(self, kind: str, number: int, bad: Any, who: Lanes, detail: Any) -> None:
        """`bad` [lanes] or [lanes, elements]; `detail` of the first that is."""
        if bad.any():
            at = int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
            self.report(kind, number, int(self.lane[who[at]]), detail(at), int(bad.sum()))

    def _taking_part(self, mask: Mask) -> Lanes:
        return np.arange(self.lanes) if mask is None else np.flatnonzero(mask)

    # --- warps and barriers -----------------------------------------------------------------------------------------

    def _together(self, kind: str, number: int, mask: Mask, threads: int) -> None:
        """Of so many threads that belong together either all take part, or none."""
        if mask is not None:
            parts = mask.reshape(-1, threads)
            apart = parts.any(1) & ~parts.all(1)
            first = np.arange(len(apart)) * threads
            self._report_first(kind, number, apart, first, lambda at: f"not all {threads} threads arrive")

    def barrier(self, number: int, mask: Mask) -> None:
        self.time += 1
        self._together("divergent barrier", number, mask, self.threads)
        who = slice(None) if mask is None else mask
        self.barrier_time[who] = self.warp_time[who] = self.time

    def warp_barrier(self, number: int, mask: Mask) -> None:
        self.time += 1
        self._together("divergent warp", number, mask, 32)
        self.warp_time[slice(None) if mask is None else mask] = self.time

    def shfl(self, number: int, mode: str, a: Lanes, b: Any, c: Any, mask: Mask) -> tuple[Lanes, Lanes]:
        self._together("divergent warp", number, mask, 32)
        key = (mode, b.tobytes(), c.tobytes())
        if key not in self.shuffles:
            lane = np.arange(self.lanes, dtype=i4) & 31
            segment, clamp = (c >> 8) & 31, c & 31
            low = lane & segment
            high = low | (clamp & ~segment)
            source = {
                "up": lane - (b & 31),
                "down": lane + (b & 31),
                "bfly": lane ^ (b & 31),
                "idx": low | (b & 31 & ~segment),
            }[mode]
            valid = source >= high if mode == "up" else source <= high
            found = np.where(valid, source, lane) + (np.arange(self.lanes, dtype=i8) & ~31), valid
            if b.ndim or c.ndim:
                return a[found[0]], found[1]
            self.shuffles[key] = found
        source, valid = self.shuffles[key]
        return a[source], valid

    def redux(self, number: int, modifiers: list[str], a: Lanes, mask: Mask) -> Lanes:
        self._together("divergent warp", number, mask, 32)
        operation = next(m for m in modifiers if m not in ("NaN", "abs"))
        function: Any
        if a.dtype.kind == "f":
            function = getattr(arithmetic, f"{operation}_{'nan' if 'NaN' in modifiers else 'num'}")
        else:
            names = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "add": "add"}
            function = getattr(np, names.get(operation, f"{operation}imum"))
        by_warp = (np.abs(a) if "abs" in modifiers else a).reshape(-1, 32)
        result = by_warp[:, 0]
        for j in range(1, 32):
            result = function(result, by_warp[:, j])
        return np.repeat(result, 32)

    # --- memory of the GPU ------------------------------------------------------------------------------------------

    def _watch(self, number: int, shadow: Shadow, places: Any, who: Lanes, name: str) -> Accesses:
        self.time += 1
        return Accesses(
            shadow, places, self.lane[who][:, None], self.threads, self.barrier_time[who][:, None],
            self.warp_time[who][:, None], self.time, name,
            lambda kind, lane, detail, count: self.report(kind, number, lane, detail, count),
        )  # fmt: skip

    def _located(self, number: int, address: Lanes, width: int, who: Lanes) -> Any:
        """(segment, offsets in it, lanes) for each storage hit; lanes astray are reported and left out."""
        a = address[who]
        wrong = a % u8(width) != 0
        self._report_first(
            "misaligned", number, wrong, who, lambda at: f"address {int(a[at]):#x}, access of {width} bytes"
        )
        index = (a >> u8(SEGMENT)).astype(i8) - 1
        offset = (a & u8((1 << SEGMENT) - 1)).astype(i8)
        for s in np.unique(index).tolist():
            here = index == s
            if not 0 <= s < len(self.segments):
                self._report_first(
                    "out of bounds", number, here, who, lambda at: f"address {int(a[at]):#x} is in no tensor"
                )
                continue
            segment = self.segments[s]
            outside = here & (offset + width > segment.nbytes)
            text = f"of {segment.name}, which has {segment.nbytes}"
            self._report_first("out of bounds", number, outside, who, lambda at, text=text: f"byte {offset[at]} {text}")
            here &= ~outside & ~wrong
            if here.any():
                yield segment, offset[here], who[here]

    def load_global(self, number: int, address: Lanes, size: int, count: int, mask: Mask) -> Any:
        out = np.zeros((count, self.lanes), f"u{size}")
        self._count_global(number, address, size * count, mask, False)
        for segment, offset, who in self._located(number, address, size * count, self._taking_part(mask)):
            for j in range(count):
                out[j, who] = segment.mem[size][offset // size + j]
            places = segment.elements(offset, size * count)
            if segment.initialised is not None:
                text = f"read of {segment.name}[%s], which nothing wrote"
                self._report_first(
                    "uninitialised", number, ~segment.initialised[places], who,
                    lambda at, text=text, places=places: text % places[at][0],
                )  # fmt: skip
            if self.races and segment.shadow() is not None:
                self._watch(number, segment.shadow(), places, who, segment.name).read()
        return out

    def store_global(self, number: int, address: Lanes, size: int, values: tuple[Lanes, ...], mask: Mask) -> None:
        width = size * len(values)
        self._count_global(number, address, width, mask, True)
        for segment, offset, who in self._located(number, address, width, self._taking_part(mask)):
            places = segment.elements(offset, width)
            if segment.initialised is not None:
                segment.initialised[places] = True
            same = self._write(number, segment.mem[size], offset // size, who, values, segment.name)
            if self.races and segment.shadow() is not None:
                self._watch(number, segment.shadow(), places, who, segment.name).write(same)

    def _write(self, number: int, memory: Any, base: Any, who: Lanes, values: tuple[Lanes, ...], name: str) -> Lanes:
        """Writes; returns for which lanes that changed nothing."""
        same = np.ones(len(who), bool)
        for j, value in enumerate(values):
            given = value[who]
            same &= memory[base + j] == given
            memory[base + j] = given
            text = f"lanes write different values to {name}[%s]"
            self._report_first(
                "write conflict", number, memory[base + j] != given, who,
                lambda at, text=text, j=j: text % (base[at] + j),
            )  # fmt: skip
        return same

    def _count_global(self, number: int, address: Lanes, width: int, mask: Mask, store: bool) -> None:
        if self.counting:
            self.counts.coalescing(number, address, width, mask)
            who = self._taking_part(mask)
            program = self.lane[who].astype(i8) // self.threads
            keys = program << 50 | (address[who] >> u8(5)).astype(i8)  # sectors have 45 bits, of few segments
            self.counts.trace.append((number, store, np.unique(keys)))

    # --- shared memory ----------------------------------------------------------------------------------------------

    def _shared_places(self, number: int, address: Lanes, width: int, who: Lanes) -> tuple[Lanes, Lanes]:
        """(lanes, places); those astray are reported and left out."""
        a = address[who].astype(i8)
        bad = (a % width != 0) | (a + width > self.module.shared)
        text = f"byte %s of {self.module.shared}, access of {width}"
        self._report_first("shared memory", number, bad, who, lambda at: text % a[at])
        who = who[~bad]
        return who, a[~bad] + self.local[who] * self.pitch

    def _watch_shared(self, number: int, places: Lanes, who: Lanes, width: int) -> Accesses:
        return self._watch(number, self.shared_shadow, places[:, None] + np.arange(width), who, "shared")

    def _read_shared(self, number: int, places: Lanes, who: Lanes, width: int) -> None:
        if self.races:
            accesses = self._watch_shared(number, places, who, width)
            self._report_first(
                "uninitialised", number, self.shared_shadow.w_lane[accesses.places] == -1, who,
                lambda at: f"shared byte {places[at] % self.pitch}, which nothing wrote",
            )  # fmt: skip
            accesses.read()

    def load_shared(self, number: int, address: Lanes, size: int, count: int, mask: Mask) -> Any:
        out = np.zeros((count, self.lanes), f"u{size}")
        if self.counting:
            self.counts.banks(number, address, size * count, mask)
        who, places = self._shared_places(number, address, size * count, self._taking_part(mask))
        for j in range(count):
            out[j, who] = self.shared[size][places // size + j]
        self._read_shared(number, places, who, size * count)
        return out

    def store_shared(self, number: int, address: Lanes, size: int, values: tuple[Lanes, ...], mask: Mask) -> None:
        width = size * len(values)
        if self.counting:
            self.counts.banks(number, address, width, mask)
        who, places = self._shared_places(number, address, width, self._taking_part(mask))
        same = self._write(number, self.shared[size], places // size, who, values, "shared")
        if self.races:
            self._watch_shared(number, places, who, width).write(same)

    def _matrix_halves(self, number: int, address: Lanes, matrices: int, transposed: bool, mask: Mask) -> Any:
        """For each matrix the lanes and, of each, the places of its two numbers; lane 8 i + j has row j of matrix i."""
        self._together("divergent warp", number, mask, 32)
        warps = np.arange(self.warps) if mask is None else np.flatnonzero(mask.reshape(-1, 32).any(1))
        givers = (warps[:, None] * 32 + np.arange(8 * matrices)).ravel()
        if self.counting:
            giving = np.zeros(self.lanes, bool)
            giving[givers] = True
            self.counts.banks(number, address, 16, giving)
        kept, places = self._shared_places(number, address, 16, givers)
        assert len(kept) == len(givers), "rows of a matrix outside shared memory"
        rows = places.reshape(len(warps), matrices, 8)
        t = np.arange(32)
        who = (warps[:, None] * 32 + t).ravel()
        for j in range(matrices):
            if transposed:
                yield who, [(rows[:, j][:, 2 * (t % 4) + half] + 2 * (t // 4)).ravel() for half in (0, 1)]
            else:
                yield who, [(rows[:, j][:, t // 4] + 4 * (t % 4) + 2 * half).ravel() for half in (0, 1)]

    def load_matrix(self, number: int, address: Lanes, matrices: int, transposed: bool, mask: Mask) -> Any:
        out = np.zeros((matrices, self.lanes), u4)
        for j, (who, halves) in enumerate(self._matrix_halves(number, address, matrices, transposed, mask)):
            low, high = (self.shared[2][places // 2].astype(u4) for places in halves)
            out[j, who] = low | (high << u4(16))
            for places in halves:
                self._read_shared(number, places, who, 2)
        return out

    def store_matrix(
        self, number: int, address: Lanes, values: tuple[Lanes, ...], transposed: bool, mask: Mask
    ) -> None:
        for value, (who, halves) in zip(
            values, self._matrix_halves(number, address, len(values), transposed, mask), strict=True
        ):
            for half, places in enumerate(halves):
                given = ((value >> u4(16 * half)) & u4(0xFFFF)).astype(u2)
                same = self._write(number, self.shared[2], places // 2, who, (given,), "shared")
                if self.races:
                    self._watch_shared(number, places, who, 2).write(same)
