"""Host time without a GPU: the Python in front of a launch, the launch itself being stubbed.

    python benchmarks/host.py

At batch 1 a call's time on the card is a few microseconds, so the path to the launch is half of the product. The
kernels are compiled for sm_90, as everywhere without a GPU; then a call does everything that it does before a launch
but for what the driver does: argument checks, allocation (of CPU memory), the choice of a configuration, Triton's
binding of arguments. "Triton" is the same launches alone, their arguments being ready. The difference is this
package's own.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from resources import compile_only
from ulsam_fused.kernels import launcher

import ulsam_fused as uf
from ulsam_fused import backends

SHAPE, SPLITS = (1, 512, 14, 14), 4


def microseconds(call: Callable[[], object], rounds: int = 50, calls: int = 100) -> float:
    """The least of means: what else the machine does only adds."""
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - start) / calls * 1e6)
    return min(samples)


def launches_of(call: Callable[[], object]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The launches that a call makes: kernel, arguments, options; nothing is launched."""
    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    original = triton.JITFunction.run

    def run(kernel: Any, *arguments: Any, **options: Any) -> Any:
        found.append((kernel, arguments, options))
        return original(kernel, *arguments, **options)

    triton.JITFunction.run = run
    try:
        call()
    finally:
        triton.JITFunction.run = original
    return found


def measure(name: str, call: Callable[[], object]) -> dict[str, Any]:
    """One row: the call, and Triton's part of it."""
    launches = launches_of(call)

    def bare() -> None:
        for kernel, arguments, options in launches:
            kernel.run(*arguments, **options)

    whole, theirs = microseconds(call), microseconds(bare)
    return {"call": name, "launches": len(launches), "us": whole, "triton_us": theirs, "own_us": whole - theirs}


def main() -> int:
    if launcher.INTERPRETED:
        print("TRITON_INTERPRET is set; nothing can be compiled in this process", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    backends.why_not_triton = lambda device: None  # CPU tensors stand for a GPU's
    x = torch.randn(SHAPE, dtype=torch.float16)
    paper = uf.ULSAM(SHAPE[1], SPLITS, backend="triton").half()
    authors = uf.upstream.ULSAM(SHAPE[1], num_splits=SPLITS, backend="triton").half().eval()
    calls: dict[str, Callable[[], object]] = {
        "paper's form, no gradient": lambda: paper(x),
        "authors' form in eval mode, no gradient": lambda: authors(x),
    }
    rows = []
    with torch.no_grad():
        for call in calls.values():
            with compile_only(90) as compiled:
                call()
            for kernel, _ in compiled:
                kernel.module, kernel.function, kernel._run = object(), 0, lambda *_: None
        rows = [measure(name, call) for name, call in calls.items()]
    print(f"torch {torch.__version__}, Triton {triton.__version__}, {SHAPE}, float16, g = {SPLITS}; microseconds")
    print(f"{'call':<42} {'launches':>8} {'whole':>7} {'Triton':>7} {'own':>7}")
    for row in rows:
        times = "".join(f" {row[name]:>7.1f}" for name in ("us", "triton_us", "own_us"))
        print(f"{row['call']:<42} {row['launches']:>8}{times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
