"""Reads the machine code of a compiled kernel: its registers, its accesses of memory, its hottest loop."""

import functools
import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import triton

from benchmarks.compiled.loops import Instruction, innermost

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


class Usage(NamedTuple):
    registers: int
    stack: int  # bytes per thread; not 0 means spills


def instructions(kernel: Any) -> list[Instruction]:
    return [Instruction(int(address, 16), name, operands) for address, name, operands in _LINE.findall(_dump(kernel))]


def usage(kernel: Any) -> Usage:
    text = _dump(kernel)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return Usage(int(found[1]), int(found[2]))


def _dump(kernel: Any) -> str:
    return _cuobjdump(kernel.asm["cubin"])


@functools.lru_cache  # each is read twice, calls share kernels, and the tool takes half a second
def _cuobjdump(cubin: bytes) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def hottest_loop(code: list[Instruction], access: str = "LDG") -> list[str]:
    """The names in the innermost loop with the most loads, which is the row march where there is one.

    With access "STG": the innermost loop with the most stores.
    """
    loops = []
    for instruction in code:
        target = re.search(r"0x([0-9a-f]+)", instruction.operands) if instruction.name.startswith("BRA") else None
        if target and int(target[1], 16) < instruction.address - 16:
            loops.append((int(target[1], 16), instruction.address))
    bodies = [[each.name for each in code if start <= each.address <= end] for start, end in innermost(loops)]
    return max(bodies, key=lambda body: (sum(name.startswith(access) for name in body), len(body)), default=[])


def widest(code: list[Instruction], access: str) -> int:
    """Bytes per lane of the widest access: LDG loads from global memory, STG stores to it."""
    widths = [
        next((size for suffix, size in _WIDTHS.items() if suffix in each.name.split(".")), 4)
        for each in code
        if each.name.split(".")[0] == access
    ]
    return max(widths, default=0)


def keeps_nan(kernel: Any, code: list[Instruction]) -> bool:
    """Whether a maximum gives NaN where an operand is NaN."""
    in_sass = any(re.search(r"MNMX\S*\.NAN", each.name) for each in code)
    return in_sass or re.search(r"max\S*\.NaN", kernel.asm["ptx"]) is not None
