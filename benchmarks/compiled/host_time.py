"""Host time without a GPU: the Python in front of a launch, the launch itself being stubbed.

    python -m benchmarks.compiled.host_time
    python -m benchmarks.compiled.host_time --sms 1    # as if the GPU were so small that batch 1 fills it: one launch

At batch 1 a call's time on the card is a few microseconds, so the path to the launch is half of the product. The
kernels are compiled for sm_90, as everywhere without a GPU; then a call does everything that it does before a launch
but for what the driver does: argument checks, allocation (of CPU memory), the choice of what to launch, Triton's
part. Microseconds in columns:

    whole   the call
    bound   the same with Triton binding the arguments of every launch, as it does where its kernels are not kept
    Triton  the launches alone, bound by Triton, their arguments being ready
    over    whole less Triton; in a training step with what autograd takes
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu.launching import geometry, launch

import ulsam_fused as uf
from benchmarks.compiled import stub_driver as stubbed
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
    """The launches that a call makes where Triton binds them: kernel, arguments, options."""
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
    """One row."""
    kept = launch.keep
    launch.keep = False
    launches = launches_of(call)

    def bare() -> None:
        for kernel, arguments, options in launches:
            kernel.run(*arguments, **options)

    bound, theirs = microseconds(call), microseconds(bare)
    launch.keep = kept
    call()
    whole = microseconds(call)
    times = {"whole": whole, "bound": bound, "Triton": theirs, "over": whole - theirs}
    return {"call": name, "launches": len(launches), **times}


def step(layer: torch.nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward, in all that has a gradient."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    dy = torch.ones_like(x)

    def call() -> object:
        return torch.autograd.grad(layer(leaves[0]), leaves, dy, allow_unused=True)

    return call


class Nothing(torch.autograd.Function):
    """What autograd itself takes for a function of so many tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return ctx.saved_tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors of the GPU (default: an H200's)")
    parser.add_argument("--rounds", type=int, default=50, help="of 100 calls; the fastest counts")
    arguments = parser.parse_args()
    if launcher.INTERPRETED:
        print("TRITON_INTERPRET is set; nothing can be compiled in this process", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    stubbed.activate(lambda src, metadata: lambda *_: None)
    backends.why_not_triton = lambda device: None  # CPU tensors stand for a GPU's
    geometry.CPU_SMS = arguments.sms
    microseconds.__defaults__ = (arguments.rounds, 100)  # type: ignore[attr-defined]
    x = torch.randn(SHAPE, dtype=torch.float16)
    paper = uf.ULSAM(SHAPE[1], SPLITS, backend="triton").half()
    authors = uf.upstream.ULSAM(SHAPE[1], num_splits=SPLITS, backend="triton").half()
    rows = [measure("paper's form, training step", step(paper, x))]
    rows += [measure("authors' form, training step", step(authors, x))]
    authors.eval()
    with torch.no_grad():
        rows += [measure("paper's form, no gradient", lambda: paper(x))]
        rows += [measure("authors' form in eval mode, no gradient", lambda: authors(x))]
    print(
        f"torch {torch.__version__}, Triton {triton.__version__}, {SHAPE}, float16, g = {SPLITS}, "
        f"{arguments.sms} multiprocessors; microseconds"
    )
    print(f"{'call':<42} {'launches':>8} {'whole':>7} {'bound':>7} {'Triton':>7} {'over':>7}")
    for row in rows:
        times = "".join(f" {row[name]:>7.1f}" for name in ("whole", "bound", "Triton", "over"))
        print(f"{row['call']:<42} {row['launches']:>8}{times}")
    for name, layer in (("paper's", paper), ("authors'", authors)):
        leaves = [x.clone().requires_grad_(), *layer.parameters()]
        dy = torch.ones_like(x)
        alone = microseconds(lambda: torch.autograd.grad(Nothing.apply(*leaves), leaves, dy))  # noqa: B023
        print(f"autograd alone, for a Function of the {name} {len(leaves)} tensors: {alone:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
