"""A PTX kernel as one Python function of numpy operations on all lanes (threads of all programs of a batch).

Every block has two forms: all lanes are at this place, or some (`m`), and the others keep their registers. `E` is the
`Machine`, `n` counts the warps that run each block, and t is a temporary.
"""

from typing import Any

import numpy as np

from . import arithmetic
from .flow import order, successors
from .operands import BITS, NUMPY
from .operations import Operations
from .parse import Instruction, Kernel, Operand, Place

EXIT = 1 << 30
SPACES = ("global", "shared", "param")


def space_of(i: Instruction) -> str:
    for space in SPACES:
        if space in i.op:
            return space
    raise NotImplementedError("memory that is neither global nor shared")


class Translator(Operations):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.rank = order(successors(kernel))
        self.number = 0  # of the instruction

    def function(self) -> Any:
        """run(machine)."""
        code = compile(self.source(), f"<{self.kernel.name}>", "exec")  # which fills the constants
        scope = {**vars(arithmetic), **self.constants, "np": np}
        exec(code, scope)
        return scope["run"]

    def source(self) -> str:
        out = ["def run(E):", "  where = np.where; m = None; pcs = None; b = 0; n = E.block_warps"]
        out += [f"  {self.names[r]} = E.zeros({kind})" for r, kind in self.home.items()]
        out += ["  while True:"]
        first = 0
        for b, block in enumerate(self.kernel.blocks):
            out += [f"    {'el' if b else ''}if b == {self.rank[b]}:"]
            for self.masked in (False, True):
                self.lines = [f"n[{b}] += {'m.reshape(-1, 32).any(1).sum()' if self.masked else 'E.warps'}"]
                ended = False
                for self.number, i in enumerate(block, first):
                    try:
                        ended = self.one(i, b)
                    except NotImplementedError as error:
                        raise NotImplementedError(f"{i.text!r}, PTX line {i.line}: {error}") from error
                if not ended:
                    self.go(b + 1, None, b)
                out += ["      else:" if self.masked else "      if m is None:"]
                out += ["        " + line for line in self.lines]
            first += len(block)
        out += [f"    elif b >= {len(self.kernel.blocks)}:", "      return"]
        return "\n".join(out) + "\n"

    def one(self, i: Instruction, b: int) -> bool:
        """Translates one instruction; True where it ends its block."""
        op = i.op[0]
        if op == "bra":
            self.go(self.kernel.labels[str(i.operands[0])], i.guard, b)
        elif op in ("ret", "exit"):
            if i.guard:
                raise NotImplementedError("with a guard")
            self.go(len(self.rank), None, b)
        else:
            getattr(self, f"op_{op}", self.op_other)(i)
        return op in ("bra", "ret", "exit")

    def go(self, target: int, guard: str | None, b: int) -> None:
        """To block `target`, where the guard holds; else to the one after block b."""
        there, following = ([*self.rank, EXIT][min(block, len(self.rank))] for block in (target, b + 1))
        if guard is not None:
            self.lines.append(f"t = {self.v(guard, 'b1')}")
        if self.masked:
            chosen = there if guard is None else f"where(t, {there}, {following})"
            self.lines += [f"pcs = where(m, {chosen}, pcs); b = int(pcs.min()); m = pcs == b", "if m.all(): m = None"]
        elif guard is None:
            self.lines.append(f"b = {there}")
        else:
            self.lines += [
                f"if t.all(): b = {there}",
                f"elif not t.any(): b = {following}",
                f"else: pcs = where(t, {there}, {following}); b = int(pcs.min()); m = pcs == b",
            ]

    # --- moves ------------------------------------------------------------------------------------------------------

    def op_mov(self, i: Instruction) -> None:
        d, s = i.operands
        t = i.op[-1]
        if isinstance(d, list):  # unpack
            size = BITS[t] // 8 // len(d)
            self.lines.append(f"t = {self.full(s, NUMPY[t])}.view(u{size}).reshape(-1, {len(d)})")
            for j, r in enumerate(d):
                self.assign(i, r, f"t[:, {j}].copy()", f"b{8 * size}")
        elif isinstance(s, list):  # pack
            size = BITS[t] // 8 // len(s)
            parts = ", ".join(self.full(r, f"u{size}") for r in s)
            self.assign(i, d, f"np.stack(({parts}), axis=1).view({NUMPY[t]})[:, 0].copy()", t)
        elif s in self.names and d != "_":
            self.put(i, self.names[str(d)], self.v(s, self.home[str(d)]))
        else:
            self.assign(i, d, self.v(s, NUMPY[t]) if str(s).startswith("%") else self.full(s, NUMPY[t]), t)

    def op_createpolicy(self, i: Instruction) -> None:
        self.assign(i, i.operands[0], "E.full(u8(0))", "b64")

    def op_prmt(self, i: Instruction) -> None:
        if i.op != ["prmt", "b32"]:
            raise NotImplementedError("mode")
        a, b, c = (self.full(o, "u4") for o in i.operands[1:])
        self.assign(i, i.operands[0], f"prmt({a}, {b}, {c})", "b32")

    def op_shfl(self, i: Instruction) -> None:
        d, *rest = i.operands
        p = rest.pop(0) if len(rest) == 5 else None
        a, b, c, _ = rest
        self.lines.append(
            f"t, t_p = E.shfl({self.number}, {i.op[2]!r}, {self.full(a, 'u4')}, {self.v(b, 'i4')}, "
            f"{self.v(c, 'i4')}, {self.mask(i)})"
        )
        self.assign(i, d, "t", "b32")
        if p is not None:
            self.assign(i, p, "t_p", "pred")

    def op_redux(self, i: Instruction) -> None:
        t = i.op[-1]
        given = f"{self.number}, {i.op[2:-1]!r}, {self.full(i.operands[1], NUMPY[t])}, {self.mask(i)}"
        self.assign(i, i.operands[0], f"E.redux({given})", t)

    def op_bar(self, i: Instruction) -> None:
        self.lines.append(f"E.{'warp_barrier' if 'warp' in i.op else 'barrier'}({self.number}, {self.mask(i)})")

    op_barrier = op_bar

    # --- memory -----------------------------------------------------------------------------------------------------

    def _access(self, i: Instruction, place: Operand) -> tuple[str, str, int, int]:
        """(space, addresses, bytes per element, elements)."""
        assert isinstance(place, Place)
        if {"volatile", "relaxed", "acquire", "release"} & set(i.op):
            raise NotImplementedError("memory order")
        space = space_of(i)
        kind = "u8" if space == "global" else "u4"
        if place.base is None or place.base == "global_smem":
            address = f"E.full({kind}({place.offset}))"
        elif space == "param":
            address = ""
        else:
            address = self.full(place.base, kind) + (f" + {kind}({place.offset})" if place.offset else "")
        count = next((int(p[1:]) for p in i.op if p in ("v2", "v4", "v8")), 1)
        return space, address, BITS[i.op[-1]] // 8, count

    def op_ld(self, i: Instruction) -> None:
        d, place = i.operands[:2]
        space, address, size, count = self._access(i, place)
        kind = NUMPY[i.op[-1]]
        if space == "param":
            assert isinstance(place, Place)
            if place.offset:
                raise NotImplementedError("part of a parameter")
            index = self.kernel.params.index(str(place.base))
            self.lines.append(f"t = (E.param({index}, {kind}),)")
        else:
            self.lines.append(f"t = E.load_{space}({self.number}, {address}, {size}, {count}, {self.mask(i)})")
        for j, r in enumerate(d if isinstance(d, list) else [d]):
            self.assign(i, r, f"t[{j}].view({kind})", f"b{8 * size}" if i.op[-1] == "bf16" else i.op[-1])

    def op_st(self, i: Instruction) -> None:
        place, s = i.operands[:2]
        space, address, size, _ = self._access(i, place)
        values = ", ".join(self.full(r, f"u{size}") for r in (s if isinstance(s, list) else [s]))
        self.lines.append(f"E.store_{space}({self.number}, {address}, {size}, ({values},), {self.mask(i)})")

    def op_ldmatrix(self, i: Instruction) -> None:
        d, place = i.operands
        assert isinstance(d, list)
        address = self._matrix(i, place)
        self.lines.append(f"t = E.load_matrix({self.number}, {address}, {len(d)}, {'trans' in i.op}, {self.mask(i)})")
        for j, r in enumerate(d):
            self.assign(i, r, f"t[{j}]", "b32")

    def op_stmatrix(self, i: Instruction) -> None:
        place, s = i.operands
        assert isinstance(s, list)
        address = self._matrix(i, place)
        values = ", ".join(self.full(r, "u4") for r in s)
        given = f"{self.number}, {address}, ({values},), {'trans' in i.op}, {self.mask(i)}"
        self.lines.append(f"E.store_matrix({given})")

    def _matrix(self, i: Instruction, place: Operand) -> str:
        if "m8n8" not in i.op or i.op[-1] != "b16":
            raise NotImplementedError("shape of a matrix")
        return self._access(i, place)[1]
