"""What can be read from PTX without running it."""

import linecache
import pathlib
import re
from typing import Any

from ulsam_fused.kernels.gpu import forward

from .operands import BITS
from .parse import Instruction, Kernel

FILES = {path.name: str(path) for path in pathlib.Path(forward.__file__).parent.rglob("*.py")}
SWEEPS = ("reweight.py", "softmax_backward.py", "moments.py", "norm_backward.py")  # flat ones over x, dy, y, dx


def fused_across_lanes(kernel: Kernel) -> list[Instruction]:
    """Products that are fused into a sum with another lane's number.

    Where lanes exchange such numbers, each fuses its own and rounds the other's: their sums differ in the last bit.
    """
    from_lanes: set[object] = set()
    found = []
    for i in (i for block in kernel.blocks for i in block if i.operands):
        d, *sources = i.operands
        read = [r for o in sources for r in (o if isinstance(o, list) else [o])]
        if i.op[0] == "shfl" or (i.op[0] == "mov" and from_lanes.intersection(r for r in read if isinstance(r, str))):
            from_lanes.update(d if isinstance(d, list) else [d])
        elif i.op[0] == "fma" and sources[2] in from_lanes and i.source.startswith("standard.py"):  # `tl.sum`
            found.append(i)
    return found


def narrow_sweeps(kernel: Kernel, constants: dict[str, Any], itemsize: int) -> tuple[int, list[Instruction]]:
    """(accesses to maps in flat sweeps, those that are narrower than the launch's alignment allows)."""
    count, narrow = 0, []
    for i in (i for block in kernel.blocks for i in block):
        where = re.match(r"(\w+\.py):(\d+)", i.source)
        if i.op[0] not in ("ld", "st") or "global" not in i.op or where is None or where[1] not in SWEEPS:
            continue
        access = re.search(r"tl\.(?:load|store)\((x|y|dx|dy)_ptr\b", linecache.getline(FILES[where[1]], int(where[2])))
        if access is not None:
            width = BITS[i.op[-1]] // 8 * next((int(p[1:]) for p in i.op if p in ("v2", "v4", "v8")), 1)
            vec = constants["VEC_DY" if access[1] == "dy" else "VEC"]
            vec = constants["RUN"] if constants.get("CYCLE", 1) > 1 else vec
            count += 1
            narrow += [i] if width < min(16, vec * itemsize) else []
    return count, narrow
