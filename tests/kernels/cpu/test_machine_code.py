"""What the C++ kernels compiled to: whole vectors in every inner loop, within their budgets of instructions."""

import shutil

import pytest
from ulsam_fused.kernels.cpu import build

from benchmarks.compiled import cpu_loops
from benchmarks.compiled.cpu_loops import BUDGETS, Loop
from benchmarks.compiled.loops import Instruction


def why_not() -> str | None:
    """Budgets are for what GCC makes of AVX2 and AVX-512."""
    if build.problem() is not None or shutil.which("objdump") is None:
        return build.problem() or "there is no objdump"
    return None if cpu_loops.width_here() and "g++" in build._compiler()[0] else "not GCC for AVX2 or AVX-512"


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_inner_loops() -> None:
    for kernel, loop in cpu_loops.measure().items():
        budget = BUDGETS[cpu_loops.width_here()][kernel]
        assert loop.width == cpu_loops.width_here(), kernel
        assert loop.instructions / budget.vectors <= budget.most, kernel
        assert loop.spills <= budget.vectors, kernel  # less than one for each vector that is handled


def test_loops_are_found_and_spills_counted() -> None:
    listed = [
        (0x10, "vaddss", "%xmm0,%xmm1,%xmm1"),  # a scalar loop
        (0x14, "jne", "10 <f+0x0>"),
        (0x20, "vmovups", "(%rdi),%ymm0"),  # a loop around the next
        (0x24, "vmovups", "(%rsi),%ymm1"),
        (0x28, "vaddps", "%ymm0,%ymm1,%ymm2"),
        (0x2C, "vmovaps", "%ymm2,0x20(%rsp)"),
        (0x30, "vmovups", "%ymm2,(%rdi)"),
        (0x34, "jne", "24 <f+0x14>"),
        (0x38, "jne", "20 <f+0x10>"),
        (0x3C, "jmp", "50 <f+0x40>"),  # forward
    ]
    code = [Instruction(*each) for each in listed]
    assert cpu_loops.hottest_loop(code) == Loop(instructions=5, width=32, spills=1)
    assert cpu_loops.hottest_loop(code[:2]).width == 0
