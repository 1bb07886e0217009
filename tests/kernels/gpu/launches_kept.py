"""A script: what arrives at the driver is the same where Triton binds arguments and where its kernel was kept.

Triton chooses kernels for sm_90, but nothing is compiled, loaded or launched. Compared are, argument by argument, what
Triton's launcher would be called with, and of the kernel its signature, its constants and what it assumes of each
argument.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler.compiler import LazyDict
from ulsam_fused.kernels.contract import Exchange, FixedNorm, Inputs, NormInputs, NormSaved, Options, Running
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu import norm_backend as norm_launcher
from ulsam_fused.kernels.gpu.launching import launch

from benchmarks.compiled import stub_driver as stubbed

ARRIVED: list[tuple[Any, ...]] = []
"""Of every launch: the kernel, then what the launcher was given."""


def launcher_of(src: Any, metadata: Any) -> Callable[..., None]:
    """In place of what puts arguments into the driver's hands."""
    kernel = (src.fn.__name__, src.signature, src.constants, src.attrs, metadata._asdict())
    return lambda *arguments: ARRIVED.append((kernel, *map(told, arguments)))


def told(argument: object) -> object:
    """What can be compared: inputs live at one place, outputs and scratch at another in every call."""
    if isinstance(argument, Tensor):
        place = argument.data_ptr() if argument.data_ptr() in PLACES else argument.data_ptr() % 16
        return place, argument.shape, argument.stride(), argument.dtype
    if isinstance(argument, LazyDict):  # for hooks: name, function and stream, made anew for every launch
        return argument.data
    return type(argument).__name__, argument


PLACES: set[int] = set()


def tensor(*shape: int, dtype: torch.dtype = torch.float32, aligned: bool = True) -> Tensor:
    """An input; not aligned: its address is no multiple of 16."""
    storage = torch.zeros(int(torch.Size(shape).numel()) + 1, dtype=dtype)
    t = storage[0 if aligned else 1 :][: torch.Size(shape).numel()].view(shape)
    assert (t.data_ptr() % 16 == 0) == aligned
    PLACES.add(t.data_ptr())
    KEPT_ALIVE.append(storage)
    return t


KEPT_ALIVE: list[Tensor] = []


def calls() -> Iterator[Callable[[], object]]:
    """Calls that differ in what Triton's choice depends on, those of one geometry next to each other."""
    half, n, g, c, h, w = torch.float16, 2, 2, 16, 8, 8
    x, odd = (tensor(n, c, h, w, dtype=half, aligned=aligned) for aligned in (True, False))
    p, p_half, p_odd = tensor(c), tensor(c, dtype=half), tensor(c, aligned=False)
    b, d_attention = tensor(g), tensor(n, g, h, w)
    z, lse = tensor(n, g, h, w), tensor(n, g)

    def forward(x: Tensor, p: Tensor, b: Tensor | None, maps: bool, lse: bool) -> Callable[[], object]:
        inputs = Inputs(x, p, None if b is None else p, p, b)
        return lambda: launcher.forward(inputs, Options(g, False, False, None, maps, lse))

    yield forward(x, p, None, False, False)
    yield forward(x, p_half, None, False, False)
    yield forward(odd, p, None, False, False)
    yield forward(x, p_odd, None, False, False)
    yield forward(x, p, b, False, True)
    yield forward(x, p, None, True, True)
    yield forward(x.to(memory_format=torch.channels_last), p, None, False, False)
    one = Inputs(tensor(1, 1, 1, 1), p[:1], None, p[:1], None)
    yield lambda: launcher.forward(one, Options(1, False, False, need_lse=False))

    def backward(dy: Tensor | None, da: Tensor | None, shift: Tensor | None) -> Callable[[], object]:
        return lambda: launcher.backward(dy, da, Inputs(x, p, shift, p, None), z, lse, Options(g, False, False))

    yield backward(x, None, None)
    yield backward(odd, None, None)
    yield backward(None, d_attention, p)

    def folded(x: Tensor, dw: Tensor | None, norm1: FixedNorm | None) -> Callable[[], object]:
        norm2 = FixedNorm(b, b, b, b, 1e-3)
        options = Options(g, dw is not None, True, eps1=1e-5, eps2=1e-3)
        return lambda: norm_launcher.folded_forward(x, dw, p, norm1, p, b, norm2, options)

    yield folded(x, p, FixedNorm(p, p, p, p, 1e-5))
    yield folded(x, p, FixedNorm(p, p, p, p_odd, 1e-5))
    yield folded(x, None, None)

    def norm_forward(x: Tensor, momentum: float | None) -> Callable[[], object]:
        exchange = Exchange(None if momentum is None else Running(p, p, p, momentum))
        options = Options(g, True, True, eps1=1e-5, eps2=1e-3)
        return lambda: norm_launcher.norm_forward(NormInputs(x, p, p, p, p, b, b), options, exchange)

    yield norm_forward(x, None)
    yield norm_forward(x, 0.1)
    yield norm_forward(x, 0.3)
    yield norm_forward(x, 1.0)
    yield norm_forward(odd, None)

    first, second = tensor(5, c), tensor(6, g)

    def norm_backward(dy: Tensor, gamma1: Tensor | None) -> Callable[[], object]:
        saved, options = NormSaved(z, lse, first, second), Options(g, True, True, eps1=1e-5)
        inputs = NormInputs(x, p, gamma1, p, p, b, b)
        return lambda: norm_launcher.norm_backward(dy, None, inputs, saved, options)

    yield norm_backward(x, p)
    yield norm_backward(odd, p)
    yield norm_backward(x, None)


def arrivals(call: Callable[[], object]) -> list[tuple[Any, ...]]:
    ARRIVED.clear()
    call()
    return list(ARRIVED)


def main() -> None:
    stubbed.activate(launcher_of)
    assert launch.keep, f"compiled kernels are not kept with Triton {triton.__version__}"
    bound = 0
    original = triton.JITFunction.run

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal bound
        bound += 1
        return original(self, *arguments, **options)

    triton.JITFunction.run = run
    compared = 0
    variants = list(calls())
    launch.keep = False
    wanted = [arrivals(call) for call in variants]
    assert bound == sum(map(len, wanted))
    launch.keep = True
    for _ in range(2):  # in the first round kernels are kept, in the second they are used
        before = bound
        for call, expected in zip(variants, wanted, strict=True):
            got = arrivals(call)
            assert len(got) == len(expected)
            for one, other in zip(got, expected, strict=True):
                assert one == other, [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
                compared += 1
    assert bound == before, "arguments were bound again"

    # who instruments or debugs kernels gets those that Triton compiles then
    def ask(*arguments: Any, **options: Any) -> Any:
        raise Asked

    triton.JITFunction.run = ask
    variants[0]()
    for owner, name, value in (
        (knobs.runtime, "debug", True),
        (knobs.runtime, "add_stages_inspection_hook", lambda *_: None),
        (knobs.compilation, "instrumentation_mode", "fpsan"),
    ):
        old = getattr(owner, name)
        setattr(owner, name, value)
        try:
            variants[0]()
        except Asked:
            setattr(owner, name, old)
        else:
            raise AssertionError(f"a kept kernel was used in spite of {name}")
    print(f"{compared} launches compared")


class Asked(Exception):
    """Triton was asked to bind arguments."""


if __name__ == "__main__":
    main()
