"""Operands of PTX as expressions of numpy.

A register is an array [lanes] in the type in which it is used most, its home; other types are views of it.
"""

import collections

import numpy as np

from .parse import Instruction, Kernel, Operand, Place

BITS = {"pred": 1, "bf16": 16, "f16x2": 32, "bf16x2": 32, "f32x2": 64}
BITS |= {f"{kind}{n}": n for kind in "busf" for n in (8, 16, 32, 64)}
NUMPY = {"pred": "b1", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4", "f32x2": "u8"}
NUMPY |= {f"{kind}{n}": f"{'u' if kind == 'b' else 'i' if kind == 's' else kind}{n // 8}" for kind in "busf" for n in (8, 16, 32, 64)}  # fmt: skip  # noqa: E501
PACKED = {"f16x2": ("f16", "f2"), "bf16x2": ("bf16", "u2"), "f32x2": ("f32", "f4")}  # (type, numpy's) of a part
FLOATS = ("f16", "f32", "f64", "bf16", *PACKED)


class Operands:
    """Registers and constants of a kernel, and the lines of Python that assign to them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.instructions = [i for block in kernel.blocks for i in block]
        self.constants: dict[str, object] = {}
        self.names = {r: "r_" + r[1:].replace("%", "").replace(".", "_") for r in kernel.registers}
        self.home = self._homes()
        self.lines: list[str] = []
        self.masked = False  # whether the lines are for some lanes, those of `m`

    def _homes(self) -> dict[str, str]:
        votes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for i in self.instructions:
            kind = NUMPY.get(i.op[-1])
            for o in i.operands:
                for r in [o.base] if isinstance(o, Place) else o if isinstance(o, list) else [o]:
                    if r in self.kernel.registers and kind is not None:
                        votes[r][kind] += 1
        homes = {}
        for r, declared in self.kernel.registers.items():
            size = BITS[declared] // 8
            fits = [(n, k[0] in "fi", k) for k, n in votes[r].items() if k != "b1" and int(k[1]) == size]
            homes[r] = "b1" if declared == "pred" else max(fits)[2] if fits else f"u{size}"
        return homes

    def constant(self, text: str, kind: str) -> str:
        """An immediate as a numpy scalar of this type."""
        if text.startswith(("0f", "0F")):
            bits, made = int(text[2:], 16), "f4"
        elif text.startswith(("0d", "0D")):
            bits, made = int(text[2:], 16), "f8"
        elif text.startswith(("0x", "0X")) or text.lstrip("-").rstrip("U").isdigit():
            bits, made = int(text.rstrip("U"), 0), kind
        else:
            raise NotImplementedError(f"immediate {text}")
        assert made[0] != "f" or kind[0] != "f" or made == kind, (text, kind)
        name = f"K{len(self.constants)}"
        if kind == "b1":
            self.constants[name] = np.bool_(bits != 0)
        else:
            size = int(kind[1])
            raw = (bits & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            self.constants[name] = np.frombuffer(raw, kind)[0]
        return name

    def v(self, o: Operand, kind: str) -> str:
        """An operand as an expression of this numpy type; of an immediate it is a scalar."""
        if not isinstance(o, str):
            raise NotImplementedError("kind of operand")
        if o.startswith("!"):
            return f"~{self.v(o[1:], kind)}"
        if o in self.names:
            home = self.home[o]
            if home == kind:
                return self.names[o]
            if home[1] == kind[1] and "b1" not in (home, kind):
                return f"{self.names[o]}.view({kind})"
            unsigned = self.names[o] if home[0] == "u" else f"{self.names[o]}.view(u{home[1]})"
            if int(home[1]) > int(kind[1]):
                return f"{unsigned}.astype(u{kind[1]})" + ("" if kind[0] == "u" else f".view({kind})")
            raise NotImplementedError(f"{o} of {home} as {kind}")
        if o.startswith("%"):
            return f"E.specials[{o!r}]"
        return f"{kind}(0)" if o == "global_smem" else self.constant(o, kind)

    def full(self, o: Operand, kind: str) -> str:
        """Likewise, never a scalar."""
        return self.v(o, kind) if o in self.names else f"E.full({self.v(o, kind)})"

    def value(self, o: Operand, t: str, *, full: bool = False) -> str:
        """An operand of a PTX type as one to compute with: bfloat16 as float32, packed parts as more lanes."""
        get = self.full if full or t in PACKED else self.v
        if t in PACKED:
            part, kind = PACKED[t]
            wide = f"{get(o, NUMPY[t])}.view({kind})"
            return f"bf({wide})" if part == "bf16" else wide
        return f"bf({get(o, 'u2')})" if t == "bf16" else get(o, NUMPY[t])

    def assign(self, i: Instruction, o: Operand, expression: str, t: str) -> None:
        """A value of a PTX type, as `value` gives it, to a register."""
        assert isinstance(o, str)
        if o == "_":
            return
        kind, home = NUMPY[t], self.home[o]
        if t in ("bf16", "bf16x2"):
            expression = f"tobf({expression})"
        if t in PACKED:
            expression = f"({expression}).view({kind})"
        if home[1] == kind[1] and home != kind:
            expression = f"({expression}).view({home})"
        elif int(kind[1]) < int(home[1]):  # a narrow value in a wide register
            extended = f"{kind[0] if kind[0] in 'iu' else 'u'}{home[1]}"
            expression = f"({expression}).astype({extended})" + ("" if extended == home else f".view({home})")
        elif home != kind:
            raise NotImplementedError(f"{t} to {home}")
        self.put(i, self.names[o], expression)

    def put(self, i: Instruction, name: str, expression: str) -> None:
        mask = self.mask(i)
        self.lines.append(f"{name} = {expression if mask == 'None' else f'where({mask}, {expression}, {name})'}")

    def mask(self, i: Instruction) -> str:
        """Which lanes take part; "None" for all."""
        parts = ["m"] * self.masked + ([self.v(i.guard, "b1")] if i.guard else [])
        return " & ".join(parts) or "None"
