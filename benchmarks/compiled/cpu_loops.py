"""What the inner loops of the C++ kernels compiled to: vector width, instructions per vector, spills.

    python -m benchmarks.compiled.cpu_loops

The library is disassembled by `objdump`. Of each kernel's function that innermost loop is read which consists of vector
instructions to the largest part: there the time goes. Budgets are for x86-64 with AVX2 or AVX-512, in float32.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ulsam_fused.kernels.cpu import build

from benchmarks.compiled.loops import Instruction, innermost

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^ +([0-9a-f]+):\t(\S+) *(.*)$")


class Budget(NamedTuple):
    """How a kernel is found among the library's functions, and what a turn of its loop may cost."""

    function: str  # a regular expression, from the function's beginning on
    vectors: int  # of x that one turn of the loop handles
    most: float  # instructions for each: a tenth above what GCC 12 gives


_LAMBDA = r".*\{lambda\(long, long, long\)#\d\}::operator"
_EITHER = {
    "logits, channels_last": Budget(r"ulsam::walk<float, false>", 2, 11),
    "reweighting": Budget(r"ulsam::reweight<float, float, float>", 2, 7.2),
    "dA": Budget(r"ulsam::add_products<float, float, float>", 4, 4),
    "down the columns": Budget(r"ulsam::march_down<float, true, true>", 1, 27.5),
    "along the rows": Budget(r"ulsam::march_along<float, false>", 1, 33),
}
BUDGETS = {
    32: _EITHER
    | {
        "logits, 7x7": Budget(r"ulsam::march<float, 1, 2, false, false, true, true>", 4, 12),
        "logits, 14x14": Budget(r"ulsam::march<float, 2, 2, false, false, true, true>", 8, 11),
        "logits, 28x28": Budget(r"ulsam::march<float, 4, 1, false, false, true, true>", 8, 11.5),
        "NCHW to channels": Budget(r"ulsam::gather_strip<float, float>" + _LAMBDA, 8, 9.4),
        "channels to NCHW": Budget(r"ulsam::scatter_strip<float, true, float, float>" + _LAMBDA, 8, 13.2),
    },
    64: _EITHER
    | {
        "logits, 7x7": Budget(r"ulsam::add_small<false, false, float>", 4, 18),
        "logits, 14x14": Budget(r"ulsam::march<float, 1, 2, false, false, true, true>", 4, 12),
        "logits, 28x28": Budget(r"ulsam::march<float, 2, 2, false, false, true, true>", 8, 11),
        "NCHW to channels": Budget(r"ulsam::gather_strip<float, float>" + _LAMBDA, 16, 10),
        "channels to NCHW": Budget(r"ulsam::scatter_strip<float, true, float, float>" + _LAMBDA, 16, 13.2),
    },
}
"""By the bytes of a vector."""


class Loop(NamedTuple):
    """The innermost loop of a function in which the share of vector instructions is largest."""

    instructions: int
    width: int  # bytes of its widest vectors
    spills: int  # vectors moved to or from the stack


def functions(library: Path) -> dict[str, list[Instruction]]:
    """The instructions of each function."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)]
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if header := _FUNCTION.match(line):
            code = found.setdefault(header[1], [])
        elif instruction := _INSTRUCTION.match(line):
            code.append(Instruction(int(instruction[1], 16), instruction[2], instruction[3]))
    return found


def hottest_loop(code: list[Instruction]) -> Loop:
    jumps = [
        (address, int(operands.split()[0], 16))
        for address, name, operands in code
        if name.startswith("j") and re.match(r"[0-9a-f]+ <", operands)
    ]
    spans = [(target, address) for address, target in jumps if code[0].address <= target <= address]
    loops = []
    for first, last in innermost(spans):
        body = [each for each in code if first <= each.address <= last]
        vectors = [operands for _, _, operands in body if "%ymm" in operands or "%zmm" in operands]
        width = max((64 if "%zmm" in operands else 32 for operands in vectors), default=0)
        spills = sum("(%rsp" in operands or "(%rbp" in operands for operands in vectors)
        loops.append((len(vectors) / len(body) if len(vectors) > 3 else 0.0, Loop(len(body), width, spills)))
    return max(loops)[1]


def width_here() -> int:
    """Bytes of the vectors that this CPU's library has; 0 without AVX2."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    wide = all(f" {needed}" in cpu for needed in ("avx512f", "avx512dq", "avx512bw", "avx512vl"))
    return 64 if wide else 32 if " avx2" in cpu else 0


def measure() -> dict[str, Loop]:
    """The loop of every kernel of this CPU's BUDGETS."""
    code = functions(build.build())
    found = {}
    for kernel, budget in BUDGETS[width_here()].items():
        matching = [name for name in code if re.match(r"(void |bool )?" + budget.function, name)]
        if not matching:
            raise LookupError(f"no function of the library is {budget.function}")
        found[kernel] = max((hottest_loop(code[name]) for name in matching), key=lambda loop: loop.instructions)
    return found


def main() -> int:
    print(f"{'kernel':24}{'instructions a vector':>22}{'at most':>9}{'width':>7}{'spills':>8}")
    for kernel, loop in measure().items():
        budget = BUDGETS[width_here()][kernel]
        print(f"{kernel:24}{loop.instructions / budget.vectors:22.1f}{budget.most:9.1f}{loop.width:7}{loop.spills:8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
