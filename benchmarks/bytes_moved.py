"""Counts the bytes that eager PyTorch moves for this operator, beside the fewest possible.

    python -m benchmarks.bytes_moved [--shape 8 512 14 14] [--num-splits 4] [--dtype float16]

Every operator that makes no view counts with each input read once and each output written once. Nothing is timed, and
caches are not modelled. The fewest bytes are x read and y written (forward), x and dy read and dx written (backward).
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ulsam_fused.bench.providers import Paper
from ulsam_fused.reference import ULSAM


class BytesMoved(TorchDispatchMode):
    """Adds up the bytes and counts the operators dispatched inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        read = {t.untyped_storage()._cdata for t in inputs}
        writes = func._schema.is_mutable or any(t.untyped_storage()._cdata not in read for t in outputs)
        if writes and "empty" not in str(func):
            self.operators += 1
            self.total += sum(_bytes(t) for t in inputs) + sum(_bytes(t) for t in outputs)
        return out


def _bytes(t: Tensor) -> int:
    """Of the elements that differ in place: along a stride of 0 there is one."""
    count = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        count *= size if stride else 1
    return count * t.element_size()


def count(module: torch.nn.Module, x: Tensor) -> tuple[BytesMoved, BytesMoved]:
    """Of the forward and of the backward."""
    with BytesMoved() as forward:
        y = module(x)
    dy = torch.randn_like(y)
    with BytesMoved() as backward:
        y.backward(dy)
    return forward, backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[8, 512, 14, 14], metavar=("N", "C", "H", "W"))
    parser.add_argument("--num-splits", type=int, default=4)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    arguments = parser.parse_args()
    shape, dtype = tuple(arguments.shape), getattr(torch, arguments.dtype)
    passes = torch.empty(shape, dtype=dtype, device="meta").nbytes
    print(f"{'x'.join(map(str, shape))} g={arguments.num_splits} {arguments.dtype}: x has {passes / 2**20:.2f} MiB")
    print(f"{'':34} {'forward':>26} {'backward':>26}")
    print(f"{'':34} {'operators':>12} {'over fewest':>13} {'operators':>12} {'over fewest':>13}")
    for name, form in (("authors' module, training", ULSAM), ("paper's formula, subspace by subspace", Paper)):
        module = form(shape[1], arguments.num_splits).to(dtype)
        forward, backward = count(module, torch.randn(shape, dtype=dtype, requires_grad=True))
        cells = f"{forward.operators:8} {forward.total / (2 * passes):12.1f}x"
        print(f"{name:38} {cells} {backward.operators:12} {backward.total / (3 * passes):12.1f}x")


if __name__ == "__main__":
    main()
