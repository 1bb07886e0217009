"""Host time without a GPU: the Python in front of a launch, the launch itself being stubbed.

    python -m benchmarks.compiled.host_time
    python -m benchmarks.compiled.host_time --sms 1    # as if the GPU were so small that batch 1 fills it: one launch

At batch 1 the GPU needs a few microseconds for a call, and the Python before the launch needs as many. A call does all
that it does on a GPU (sm_90) before the driver's part: argument checks, allocation (of CPU memory), the choice of what
to launch, and Triton's part. The columns are microseconds, and the last two count:

    whole   the call
    bound   the same, but Triton binds the arguments of every launch, as it does where its kernels are not kept
    Triton  the launches alone, with their arguments ready and bound by Triton
    over    whole less Triton; in a training step this includes autograd
    Python  functions of Python that the call runs through
    other   functions of other languages that it runs through
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu.launching import geometry, launch

import ulsam_fused as uf
from benchmarks.compiled import stub_driver
from ulsam_fused import backends

SHAPE, SPLITS = (1, 512, 14, 14), 4
CALLS = 100  # in a round


class Launch(NamedTuple):
    """A launch as Triton is asked for it."""

    kernel: Any  # triton.JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def repeat(self) -> None:
        self.kernel.run(*self.arguments, **self.options)


class HostTimes(NamedTuple):
    """Microseconds and functions of one call; the module's docstring explains them."""

    launches: int
    whole: float
    bound: float
    triton: float
    python: int
    other: int

    @property
    def over(self) -> float:
        return self.whole - self.triton


def microseconds(call: Callable[[], object], rounds: int) -> float:
    """The fastest round's mean per call: other work of the machine can only slow a round down."""
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        samples.append((time.perf_counter() - start) / CALLS * 1e6)
    return min(samples)


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The launches that a call makes where Triton binds their arguments."""
    found: list[Launch] = []
    original = triton.JITFunction.run

    def run(kernel: Any, *arguments: Any, **options: Any) -> Any:
        found.append(Launch(kernel, arguments, options))
        return original(kernel, *arguments, **options)

    triton.JITFunction.run = run
    try:
        call()
    finally:
        triton.JITFunction.run = original
    return found


def functions_of(call: Callable[[], object]) -> tuple[int, int]:
    """Through how many functions of Python, and of other languages, a call runs."""
    events: list[str] = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    call()
    sys.setprofile(None)
    # less the two that belong to the counting: the call itself, and the end of it
    return events.count("call") - 1, events.count("c_call") - 1


def measure(call: Callable[[], object], rounds: int) -> HostTimes:
    kept = launch.keep
    launch.keep = False
    launches = launches_of(call)

    def launches_alone() -> None:
        for each in launches:
            each.repeat()

    bound, alone = microseconds(call, rounds), microseconds(launches_alone, rounds)
    launch.keep = kept
    call()
    return HostTimes(len(launches), microseconds(call, rounds), bound, alone, *functions_of(call))


def step(layer: torch.nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward, with gradients of x and all parameters."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    dy = torch.ones_like(x)

    def call() -> object:
        return torch.autograd.grad(layer(leaves[0]), leaves, dy, allow_unused=True)

    return call


class Nothing(torch.autograd.Function):
    """Does nothing, so its time is what autograd needs for a function of so many tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return ctx.saved_tensors


def autograd_alone(leaves: list[Tensor], rounds: int) -> float:
    dy = torch.ones_like(leaves[0])
    return microseconds(lambda: torch.autograd.grad(Nothing.apply(*leaves), leaves, dy), rounds)  # type: ignore[no-untyped-call]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors of the GPU (default: an H200's)")
    parser.add_argument("--rounds", type=int, default=50, help="of 100 calls; the fastest counts")
    arguments = parser.parse_args()
    if launcher.INTERPRETED:
        print("TRITON_INTERPRET is set; nothing can be compiled in this process", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    stub_driver.activate(lambda src, metadata: lambda *_: None)
    backends.why_not_triton = lambda device: None  # CPU tensors stand for a GPU's
    geometry.CPU_SMS = arguments.sms
    x = torch.randn(SHAPE, dtype=torch.float16)
    paper = uf.ULSAM(SHAPE[1], SPLITS, backend="triton").half()
    authors = uf.upstream.ULSAM(SHAPE[1], num_splits=SPLITS, backend="triton").half()
    rows = {
        "paper's form, training step": measure(step(paper, x), arguments.rounds),
        "authors' form, training step": measure(step(authors, x), arguments.rounds),
    }
    authors.eval()
    with torch.no_grad():
        rows["paper's form, no gradient"] = measure(lambda: paper(x), arguments.rounds)
        rows["authors' form in eval mode, no gradient"] = measure(lambda: authors(x), arguments.rounds)
    print(
        f"torch {torch.__version__}, Triton {triton.__version__}, {SHAPE}, float16, g = {SPLITS}, "
        f"{arguments.sms} multiprocessors; microseconds"
    )
    columns = "".join(f" {name:>7}" for name in ("whole", "bound", "Triton", "over", "Python", "other"))
    print(f"{'call':<42} {'launches':>8}{columns}")
    for name, found in rows.items():
        times = "".join(f" {time:>7.1f}" for time in (found.whole, found.bound, found.triton, found.over))
        print(f"{name:<42} {found.launches:>8}{times} {found.python:>7} {found.other:>7}")
    for name, layer in (("paper's", paper), ("authors'", authors)):
        leaves = [x.clone().requires_grad_(), *layer.parameters()]
        alone = autograd_alone(leaves, arguments.rounds)
        print(f"autograd alone, for a Function of the {name} {len(leaves)} tensors: {alone:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
