"""A script: through how many functions, of Python and others, a call runs before its launch, as JSON; no times."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from ulsam_fused.kernels.gpu.launching import geometry

import ulsam_fused as uf
from benchmarks.compiled import stub_driver as stubbed
from ulsam_fused import backends

LAUNCHED: list[Any] = []


def counted(call: Callable[[], object]) -> dict[str, int]:
    """Of one call that is not the first of its kind."""
    for _ in range(2):
        call()
    LAUNCHED.clear()
    events: list[str] = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    call()
    sys.setprofile(None)
    # less the two that belong to the counting: the call itself, and the end of it
    return {"python": events.count("call") - 1, "other": events.count("c_call") - 1, "launches": len(LAUNCHED)}


def main() -> None:
    stubbed.activate(lambda src, metadata: lambda *_: LAUNCHED.append(src))
    backends.why_not_triton = lambda device: None  # CPU tensors stand for a GPU's
    paper = uf.ULSAM(16, 2, backend="triton")
    authors = uf.upstream.ULSAM(16, num_splits=2, backend="triton").eval()
    found = {}
    with torch.no_grad():
        geometry.CPU_SMS = 132
        for side in (8, 48):  # slabs of 2 and of 72 KiB
            x = torch.randn(1, 16, side, side)
            for name, layer in (("paper", paper), ("authors", authors)):
                found[f"{name} {side}"] = counted(lambda: layer(x))  # noqa: B023
    print(json.dumps(found))


if __name__ == "__main__":
    main()
