"""What the compiled kernels execute and ask of memory, counted by running their PTX on a CPU (`tests/ptx/README.md`).

    python -m benchmarks.compiled.counts                        # a table, and where accesses are poor
    python -m benchmarks.compiled.counts --only 14x14 --arch 80
    python -m benchmarks.compiled.counts --markdown docs/counts.md

Each case runs one or two images in the configuration of its published batch on 132 multiprocessors. Without norms it is
the paper's form, with norms the authors', on the statistics of the batch. Launches of the forward combine as many parts
of them as the published batch has. Columns:

    instr     instructions per element of x that one lane issues, without moves, parameters and branches
    load      sectors of 32 bytes per request of a warp, and the share of their bytes that was asked for; store likewise
    passes    of shared memory per element, in lanes: 32 times the cycles that warps' accesses take, over the elements
    bank      passes over the fewest possible
    L1        bytes that miss a simulated L1 of 256 KB of each program, over the floor
    DRAM      bytes that miss a simulated L2, 50 MB times the share of the published batch, over the floor
    H100, H200  a lower bound of the time in microseconds for the published batch: the largest of what the schedulers
              need to issue, memory to move and shared memory to pass. It is a bound, and not a measurement. It takes
              machine code for as long as PTX, and the highest clock and bandwidth that are published.

The floor is x read and y written, or x and dy read and dx written. Both caches are LRU of sectors, programs one after
the other; stores pass the L1.
"""

import argparse
import collections
import dataclasses
import itertools
import math
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange, Inputs, NormForward, NormInputs, NormSaved, Options
from ulsam_fused.kernels.gpu import backend, norm_backend
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.geometry import compared_size

from benchmarks.compiled.stub_driver import phases
from benchmarks.sizes import numbers
from tests.ptx.counts import Counts
from tests.ptx.driver import install

CASES = {"256x512x14x14/g4": 2, "64x160x7x7/g8": 2, "256x1024x7x7/g4": 2, "256x128x56x56/g4": 1, "256x32x112x112/g1": 1}
"""Images that are run of each published size."""

SMS, SCHEDULERS, CLOCK = 132, 4, 1.98e9  # of an H100 and an H200 at their highest clock
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes per second
L1, L2 = 256 * 1024 // 32, 50 * 2**20 // 32  # sectors


class Row(NamedTuple):
    """One launch."""

    case: str
    kernel: str
    instr: float
    load: str
    store: str
    passes: float
    bank: float
    L1: float
    DRAM: float
    H100: float
    H200: float


class Cache:
    """Of sectors; the one that was used longest ago makes room."""

    def __init__(self, sectors: int) -> None:
        self.sectors, self.moved = sectors, 0
        self.dirty: collections.OrderedDict[int, bool] = collections.OrderedDict()

    def touch(self, sector: int, store: bool) -> bool:
        """Whether it was there."""
        hit = sector in self.dirty
        self.dirty[sector] = self.dirty.pop(sector, False) or store
        if not hit:
            self.moved += not store
            if len(self.dirty) > self.sectors:
                self.moved += self.dirty.popitem(last=False)[1]
        return hit


def through_caches(launches: list[Counts], l2_sectors: int) -> list[tuple[int, int]]:
    """For each launch bytes past the L1 and to or from DRAM; the L2 lives on between launches."""
    l2, found = Cache(l2_sectors), []
    for counts in launches:
        before, past = l2.moved, 0
        keys = np.concatenate([keys for _, _, keys in counts.trace])
        stores = np.concatenate([np.full(len(keys), store) for _, store, keys in counts.trace])
        order = np.argsort(keys >> 50, kind="stable")
        accesses = zip(keys[order].tolist(), stores[order].tolist(), strict=True)
        for _, touched in itertools.groupby(accesses, lambda access: access[0] >> 50):
            l1 = Cache(L1)
            for key, store in touched:
                sector = counts.sector_of(key & ((1 << 50) - 1))
                if store or not l1.touch(sector, False):
                    past += 32
                    l2.touch(sector, store)
        found.append((past, 32 * (l2.moved - before)))
    past, dram = found[-1]
    return [*found[:-1], (past, dram + 32 * sum(l2.dirty.values()))]


def read(case: str, counts: Counts, elements: int, floor: int, cached: tuple[int, int], batches: float) -> Row:
    """The figures of one launch; `batches`: how often these images are in the published batch."""
    instructions = counts.module.instructions

    def accesses(*words: str) -> list[Any]:
        return [a for i, a in counts.access.items() if set(words) <= set(instructions[i].op)]

    def total(found: list[Any], what: str) -> int:
        return sum(getattr(a, what) for a in found)

    def of(op: str) -> str:
        found = accesses(op, "global")
        sectors = max(total(found, "sectors"), 1)
        return f"{sectors / max(total(found, 'requests'), 1):.1f} / {total(found, 'useful') / 32 / sectors:.2f}"

    shared = accesses("shared")
    passes = total(shared, "sectors")
    seconds = max(counts.issued / (32 * SMS * SCHEDULERS * CLOCK), passes / (SMS * CLOCK))
    bounds = (round(1e6 * batches * max(seconds, cached[1] / rate), 1) for rate in BANDWIDTH.values())
    name = "+".join(phases(counts.module.constants)) or counts.module.kernel.name.removesuffix("_kernel")
    return Row(
        case, name, round(counts.issued / elements, 1), of("ld"), of("st"),
        round(32 * passes / elements, 1), round(passes / max(total(shared, "least"), 1), 2),
        round(cached[0] / floor, 2), round(cached[1] / floor, 2), *bounds,
    )  # fmt: skip


class Batch:
    """Other processes, with the rest of the published batch. Each part of it has the moments of these images."""

    def __init__(self, channels: int, x_parts: int, z_parts: int) -> None:
        self.channels, self.x_parts, self.z_parts = channels, x_parts, z_parts

    def gather(self, moments: Tensor) -> Tensor:
        return moments.repeat(self.x_parts if moments.shape[2] == self.channels else self.z_parts, 1, 1)

    def sum(self, t: Tensor) -> Tensor:
        return t


def calls(case: str, dtype: torch.dtype, channels_last: bool) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(direction, tensors of x's size that it moves, the call), in the configuration of the published batch."""
    n, c, h, w, g = numbers(case)
    given = (n, c, h, w), g, dtype.itemsize, channels_last, SMS
    forward, backward = configs.forward_config(*given), configs.backward_config(*given, compared_size(dtype))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (torch.randn(CASES[case], c, h, w).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    scale, v = torch.rand(c) + 0.5, torch.randn(c) / c**0.5
    inputs, options = Inputs(x, scale, None, v, None), Options(g, False, False)
    _, _, z, lse = backend.forward(inputs, options, config=forward)
    assert lse is not None
    yield "forward", 2, lambda: backend.forward(inputs, options, config=forward)
    yield "backward", 3, lambda: backend.backward(dy, None, inputs, z, lse, options, config=backward)

    forward = configs.norm_forward_config(*given)
    published = configs.moments_config((n, c, h, w), dtype.itemsize, channels_last, SMS)
    first = dataclasses.replace(published, parts=configs.cdiv(CASES[case] * h * w, published.part_pixels))
    norm_inputs = NormInputs(x, scale, torch.ones(c), torch.zeros(c), v, torch.ones(g), torch.zeros(g))
    options = Options(g, True, True, eps1=1e-5, eps2=1e-5)

    def norm_forward() -> NormForward:
        exchange = Exchange(group=Batch(c, published.parts, n * (configs.cdiv(h, forward.strip_rows or h))))
        return norm_backend.norm_forward(norm_inputs, options, exchange, config=forward, first_config=first)

    saved = NormSaved(*norm_forward()[2:])
    yield "forward with norms", 2, norm_forward
    yield (
        "backward with norms",
        3,
        lambda: norm_backend.norm_backward(dy, None, norm_inputs, saved, options, config=backward),
    )


def rows(arch: int, only: str) -> Iterator[Row]:
    emulator = install(arch)
    emulator.races, emulator.counts = False, True
    for case, dtype, channels_last in itertools.product(CASES, (torch.float16, torch.float32), (False, True)):
        size, layout = case.split("x", 1)[1], "channels_last" if channels_last else "nchw"
        label = f"{size} {str(dtype)[6:]} {layout}"
        if only not in label:
            continue
        torch.manual_seed(0)
        n, c, h, w, _ = numbers(case)
        elements, share = CASES[case] * c * h * w, CASES[case] / n
        for direction, tensors, call in calls(case, dtype, channels_last):
            emulator.launches.clear()
            call()
            floor = tensors * elements * dtype.itemsize
            cached = through_caches(emulator.launches, max(math.floor(L2 * share), 1))
            for counts, moved in zip(emulator.launches, cached, strict=True):
                yield read(f"{label} {direction}", counts, elements, floor, moved, 1 / share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--only", default="", help="cases whose label contains this")
    parser.add_argument("--markdown", type=pathlib.Path, help="also write a page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for row in rows(arguments.arch, arguments.only):
        found.append(row)
        print(*row, sep="\t", flush=True)
    if arguments.markdown:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        arguments.markdown.write_text(page(found, f"commit {commit}, Triton {triton.__version__}, sm_{arguments.arch}"))


def page(found: list[Row], made: str) -> str:
    table = [Row._fields, ["---"] * len(Row._fields), *found]
    lines = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in table)
    about = (__doc__ or "").split("Each case")[1]
    return (
        "# Counts\n\nWhat the compiled kernels execute and ask of memory, counted by running their PTX on a CPU\n"
        f"([how](../tests/ptx/README.md)). Written by `python -m benchmarks.compiled.counts`: {made}.\n\n"
        f"Each case{about}\n{lines}\n"
    )


if __name__ == "__main__":
    main()
