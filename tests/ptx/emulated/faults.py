"""Small kernels with a fault each, which has to be found and named, and their right twins, which pass in silence."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from ulsam_fused.kernels.gpu.device.primitives import product

from tests.ptx.driver import Emulator
from tests.ptx.parse import parse
from tests.ptx.static import fused_across_lanes
from tests.ptx.translate import Translator

N = 256


@triton.jit
def copy(x, y, shift, promise: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    o = i + shift
    if promise:
        o = tl.max_contiguous(tl.multiple_of(o, 4), 4)
    tl.store(y + i, tl.load(x + o))


@triton.jit
def through_memory(x, y, barrier: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i))
    if barrier:
        tl.debug_barrier()
    tl.store(y + N + i, tl.load(y + (N - 1 - i)))


@triton.jit
def of_two_programs(x, y, apart: tl.constexpr, other: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    k = tl.program_id(0) if apart else 0
    tl.store(y + k * N + i, tl.load(x + i) + tl.program_id(0) * other)


@triton.jit
def after_each_other(x, y, apart: tl.constexpr, N: tl.constexpr):
    """The second program reads what the first has written, for which nothing made it wait."""
    i = tl.arange(0, N)
    k = tl.program_id(0)
    tl.store(y + k * N + i, tl.load(x + i))
    tl.store(y + (2 + k) * N + i, tl.load((x if apart else y) + i))


@triton.jit
def to_one_place(x, y, width: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i // width, tl.load(x + i))


@triton.jit
def sums(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    square = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(y + i, tl.sum(square, 1))
    tl.store(y + N + i, tl.sum(square, 0))


@triton.jit
def dot(x, y, rounded: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    b = tl.load(x + N + i)
    total = tl.sum(product(a, b) if rounded else a * b, 0)
    tl.store(y + i, a + total)


def found(emulator: Emulator) -> set[str]:
    kinds = {report.kind for report in emulator.reports.values()}
    emulator.reports.clear()
    return kinds


Launch = Callable[[Tensor, Tensor], Any]
SIMPLE: dict[str, tuple[Launch, int | None, int, set[str]]] = {  # launch, sizes of x (None: never written) and y, found
    "in bounds": (lambda x, y: copy[(1,)](x, y, 0, False, N), N, N, set()),
    "read beyond": (lambda x, y: copy[(1,)](x, y, 0, False, N), N - 1, N, {"out of bounds"}),
    "read before": (lambda x, y: copy[(1,)](x, y, -2, False, N), N, N, {"out of bounds"}),
    "write beyond": (lambda x, y: copy[(1,)](x, y, 0, False, N), N, N - 1, {"out of bounds"}),
    "promise kept": (lambda x, y: copy[(1,)](x, y, 4, True, N), 2 * N, N, set()),
    "promise broken": (lambda x, y: copy[(1,)](x, y, 3, True, N), 2 * N, N, {"misaligned"}),
    "never written": (lambda x, y: copy[(1,)](x, y, 0, False, N), None, N, {"uninitialised"}),
    "barrier": (lambda x, y: through_memory[(1,)](x, y, True, N), N, 2 * N, set()),
    "no barrier": (lambda x, y: through_memory[(1,)](x, y, False, N), N, 2 * N, {"race"}),
    "no barrier, one warp": (
        lambda x, y: through_memory[(1,)](x, y, False, 64, num_warps=1), N, 2 * N, {"intra-warp"}
    ),
    "programs apart": (lambda x, y: of_two_programs[(2,)](x, y, True, 1, N), N, 2 * N, set()),
    "programs in one place": (
        lambda x, y: of_two_programs[(2,)](x, y, False, 1, N), N, 2 * N, {"programs, same value", "write conflict"}
    ),
    "programs with one value": (
        lambda x, y: of_two_programs[(2,)](x, y, False, 0, N), N, 2 * N, {"programs, same value"}
    ),
    "programs read their own": (lambda x, y: after_each_other[(2,)](x, y, True, N), N, 4 * N, set()),
    "programs read each other's": (lambda x, y: after_each_other[(2,)](x, y, False, N), N, 4 * N, {"programs"}),
    "lanes apart": (lambda x, y: to_one_place[(1,)](x, y, 1, N), N, N, set()),
    "lanes in one place": (
        lambda x, y: to_one_place[(1,)](x, y, 2, N), N, N, {"write conflict", "intra-warp, same value"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIMPLE)
def test_faults_are_named(name: str, emulator: Emulator) -> None:
    launch, size, out, expected = SIMPLE[name]
    x = torch.empty(N) if size is None else torch.randn(size)
    y = torch.empty(out)
    launch(x, y)
    assert found(emulator) == expected
    if name == "in bounds":
        assert torch.equal(y, x)
    if name == "barrier":
        assert torch.equal(y[N:], x.flip(0))


def test_a_report_says_where(emulator: Emulator) -> None:
    copy[(1,)](torch.randn(N - 1), torch.empty(N), 0, False, N)
    (report,) = map(str, emulator.reports.values())
    assert re.match(r"out of bounds x1 in copy: program 0 of \(1, 1, 1\), thread \d+: byte \d+ of x, which has", report)
    assert re.search(r"PTX \d+: .*ld\.global.*\n\s+faults\.py:\d+", report)
    emulator.reports.clear()


def run_sums(emulator: Emulator, edit: Callable[[str], str]) -> set[str]:
    """What is found in `sums`, whose PTX is edited; its layouts meet in shared memory."""
    emulator.modules.clear()
    emulator.edit = edit
    x, y = torch.randn(32, 32), torch.empty(64)
    try:
        sums[(1,)](x, y, 32, num_warps=4)
    finally:
        emulator.edit = str
        emulator.modules.clear()
    kinds = found(emulator)
    if not kinds:
        torch.testing.assert_close(y, torch.cat((x.sum(1), x.sum(0))))
    return kinds


def test_shared_memory(emulator: Emulator) -> None:
    assert run_sums(emulator, str) == set()
    ptx: list[str] = []
    run_sums(emulator, lambda text: ptx.append(text) or text)
    barriers = list(re.finditer(r"bar\.sync[^;]*;", ptx[0]))
    assert len(barriers) >= 2
    for barrier in barriers:
        without = f"{ptx[0][: barrier.start()]}{ptx[0][barrier.end() :]}"
        assert run_sums(emulator, lambda _, text=without: text) & {"race", "uninitialised"}, barrier.start()
    first = barriers[0]
    some = "{ .reg .pred some; setp.gt.u32 some, %tid.x, 40; @some bar.sync 0; }"
    divergent = f"{ptx[0][: first.start()]}{some}{ptx[0][first.end() :]}"
    assert "divergent barrier" in run_sums(emulator, lambda _: divergent)
    beyond = re.sub(r"(st\.shared\S*\s+\[\s*%\w+)[^]]*\]", r"\1+65536]", ptx[0])
    assert "shared memory" in run_sums(emulator, lambda _: beyond)


@pytest.mark.parametrize("rounded", [True, False])
def test_a_product_fused_across_lanes(rounded: bool, emulator: Emulator) -> None:
    """With one product per lane each fuses its own, and rounds the other's."""
    x, y = torch.randn(64), torch.empty(32)
    dot[(1,)](x, y, rounded, 32, num_warps=1)
    assert bool(fused_across_lanes(emulator.launches[-1].module.kernel)) != rounded
    totals = y.double() - x[:32].double()
    torch.testing.assert_close(totals, (x[:32] * x[32:]).sum().double().expand(32), atol=1e-5, rtol=0)


def test_what_is_unknown_is_named() -> None:
    text = ".visible .entry k()\n{\n\t.reg .b32 %r<3>;\n\tfrob.u32 %r1, %r2;\n\tret;\n}\n"
    with pytest.raises(NotImplementedError, match=r"frob\.u32 %r1, %r2.*PTX line 4.*frob"):
        Translator(parse(text)).function()
    for statement in (
        "ld.volatile.global.b32 %r1, [%r2]",
        "add.rz.f32 %r1, %r1, %r2",
        "atom.global.add.u32 %r1, [%r2], 1",
    ):
        with pytest.raises(NotImplementedError, match=re.escape(statement)):
            Translator(parse(text.replace("frob.u32 %r1, %r2", statement))).function()
