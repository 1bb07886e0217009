"""Arithmetic, conversions and comparisons of PTX as expressions of numpy; an operation that is not here raises."""

from .operands import BITS, FLOATS, NUMPY, PACKED, Operands
from .parse import Instruction, Operand

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OPPOSITES = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # true of NaN, so not the opposite
ROUNDINGS = {"rzi": "trunc", "rni": "rint", "rmi": "floor", "rpi": "ceil"}


def only(modifiers: list[str], *known: str) -> None:
    if unknown := set(modifiers) - set(known):
        raise NotImplementedError(f"modifiers {sorted(unknown)}")


class Operations(Operands):
    def op_cvt(self, i: Instruction) -> None:
        to, source = i.op[-2:]
        modifiers = i.op[1:-2]
        if to in ("f16x2", "bf16x2"):  # the first source is the upper half
            only(modifiers, "rn")
            upper, lower = (self.full(o, "f4") for o in i.operands[1:])
            halves = f"np.stack(({lower}, {upper}), axis=1).ravel()"
            self.assign(i, i.operands[0], halves + (".astype(f2)" if to == "f16x2" else ""), to)
            return
        only(modifiers, "rn", "ftz", *ROUNDINGS)
        x = self.value(i.operands[1], source, full=True)
        if "ftz" in modifiers and source == "f32":
            x = f"ftz({x})"
        rounding = next((mode for mode in modifiers if mode in ROUNDINGS), None)
        if to in FLOATS and source in FLOATS:
            if to == "bf16" and source == "f64":
                raise NotImplementedError("would round twice")
            x = f"np.{ROUNDINGS[rounding]}({x})" if rounding else x
            result = f"({x}).astype({'f4' if to == 'bf16' else NUMPY[to]})"
        elif source in FLOATS:
            if rounding is None:
                raise NotImplementedError("to an integer without a rounding")
            result = f"toint({x}, np.{ROUNDINGS[rounding]}, {NUMPY[to]})"
        else:
            if to == "bf16":
                raise NotImplementedError("bfloat16 of an integer")
            result = f"({x}).astype({NUMPY[to]})"
        self.assign(i, i.operands[0], result, to)

    def op_setp(self, i: Instruction) -> None:
        """Writes one predicate, or two: p|q."""
        d, *rest = i.operands
        t = i.op[-1]
        compare, *logic = [p for p in i.op[1:-1] if p != "ftz"]
        second = rest.pop(0) if len(rest) == 3 + len(logic) else None
        a, b = self.value(rest[0], t, full=True), self.value(rest[1], t)
        if "ftz" in i.op:
            a, b = f"ftz({a})", f"ftz({b})"
        nan = f"(np.isnan({a}) | np.isnan({b}))"
        if t not in FLOATS and compare in ("lo", "ls", "hi", "hs") and t[0] != "u":
            raise NotImplementedError("type")
        if compare in ("nan", "num"):
            result = nan if compare == "nan" else f"~{nan}"
        elif compare == "neu" or (compare == "ne" and t not in FLOATS):
            result = f"({a} != {b})"
        elif compare == "ne":
            result = f"(({a} != {b}) & ~{nan})"
        elif compare == "equ":
            result = f"(({a} == {b}) | {nan})"
        elif compare in OPPOSITES:
            result = f"~({a} {OPPOSITES[compare]} {b})"
        else:
            result = f"({a} {COMPARISONS[compare]} {b})"
        if t in PACKED:
            assert not logic
            assert second is not None
            self.lines.append(f"t = {result}.reshape(-1, 2)")
            self.assign(i, d, "t[:, 0].copy()", "pred")
            self.assign(i, second, "t[:, 1].copy()", "pred")
            return
        self.lines.append(f"t = {result}")
        join = f" {OPERATORS[logic[0]]} {self.v(rest[2], 'b1')}" if logic else ""
        if second is not None:
            self.lines.append(f"t_q = ~t{join}")
        self.assign(i, d, f"t{join}", "pred")
        if second is not None:
            self.assign(i, second, "t_q", "pred")

    def op_selp(self, i: Instruction) -> None:
        d, a, b, p = i.operands
        t = i.op[-1] if i.op[-1] not in ("bf16", *PACKED) else f"b{BITS[i.op[-1]]}"
        self.assign(i, d, f"where({self.v(p, 'b1')}, {self.v(a, NUMPY[t])}, {self.v(b, NUMPY[t])})", t)

    def op_other(self, i: Instruction) -> None:
        op, *modifiers, t = i.op
        d, *sources = i.operands
        if t not in FLOATS:
            result, t = self._integer(op, t, modifiers, sources)
        elif "f32" in modifiers:  # float32 with operands of 16 bits
            only(modifiers, "rn", "f32")
            a, *rest = (f"({self.value(o, t, full=True)}).astype(f4)" for o in sources[:-1])
            c = self.v(sources[-1], "f4")
            result = f"fma_f4({a}, {rest[0]}, {c})" if op == "fma" else f"({a} {OPERATORS[op]} {c})"
            t = "f32"
        else:
            result = self._float(op, t, modifiers, sources)
        self.assign(i, d, result, t)

    def _float(self, op: str, t: str, modifiers: list[str], sources: list[Operand]) -> str:
        only(modifiers, "rn", "ftz", "approx", "full", "NaN")
        x = [self.value(sources[0], t, full=True), *(self.value(o, t) for o in sources[1:])]
        flush = "ftz" in modifiers and t == "f32"
        if flush:
            x = [f"ftz({a})" for a in x]
        part = PACKED[t][0] if t in PACKED else t
        if op in ("add", "sub", "mul"):
            result = f"({x[0]} {OPERATORS[op]} {x[1]})"
        elif op in ("fma", "mad"):
            function = {"f16": "fma_f2", "bf16": "fma_bf", "f32": "fma_f4", "f64": "fma_f8"}[part]
            result = f"{function}({', '.join(x)})"
        elif op in ("max", "min"):
            function = f"{op}_{'nan' if 'NaN' in modifiers else 'num'}"
            result = f"{function}({x[0]}, {x[1]})"
            if len(x) == 3:
                result = f"{function}({result}, {x[2]})"
        elif op in ("neg", "abs"):
            result = f"(-{x[0]})" if op == "neg" else f"np.abs({x[0]})"
        elif op == "div":
            result = f"({x[0]} / {x[1]})"
        elif op == "rcp" and t == "f64" and "approx" in modifiers:
            result = f"rcp_f8({x[0]})"
        elif op in ("rcp", "sqrt", "rsqrt", "ex2", "lg2") and t in ("f32", "f64"):
            result = f"{op}_({x[0]})"
        else:
            raise NotImplementedError(op)
        return f"ftz({result})" if flush else result

    def _integer(self, op: str, t: str, modifiers: list[str], sources: list[Operand]) -> tuple[str, str]:
        """(result, its type)."""
        kind = NUMPY[t]
        if op in ("shl", "shr"):
            return f"{op}({self.full(sources[0], kind)}, {self.v(sources[1], 'u4')})", t
        if op == "shf":
            a, b, c = (self.full(o, "u4") for o in sources)
            return f"funnel({modifiers!r}, {a}, {b}, {c})", t
        if op == "bfe":
            return f"bfe({self.full(sources[0], kind)}, {self.v(sources[1], 'u4')}, {self.v(sources[2], 'u4')})", t
        if op in ("popc", "clz"):
            return f"{op}({self.full(sources[0], kind)})", "u32"
        x = [self.full(sources[0], kind)]
        if op in ("mul", "mad") and "wide" in modifiers:
            wide = f"{t[0]}{2 * BITS[t]}"
            product = f"np.multiply({x[0]}, {self.v(sources[1], kind)}, dtype={NUMPY[wide]})"
            return product + (f" + {self.v(sources[2], NUMPY[wide])}" if op == "mad" else ""), wide
        if op == "lop3":
            return f"lop3({x[0]}, {self.v(sources[1], kind)}, {self.v(sources[2], kind)}, {sources[3]})", t
        x += [self.v(o, kind) for o in sources[1:]]
        if op in ("mul", "mad") and "hi" in modifiers:
            only(modifiers, "hi")
            return f"mulhi({x[0]}, {x[1]})" + (f" + {x[2]}" if op == "mad" else ""), t
        only(modifiers, "lo")
        if op == "mad":
            return f"{x[0]} * {x[1]} + {x[2]}", t
        if op in OPERATORS:
            return f"({x[0]} {OPERATORS[op]} {x[1]})", t
        if op in ("not", "neg"):
            return f"{'~' if op == 'not' else '-'}{x[0]}", t
        if op == "abs":
            return f"np.abs({x[0]})", t
        if op in ("min", "max"):
            result = f"np.{op}imum({x[0]}, {x[1]})"
            return (f"np.{op}imum({result}, {x[2]})" if len(x) == 3 else result), t
        if op in ("div", "rem"):
            return f"int{op}({x[0]}, {x[1]})", t
        raise NotImplementedError(op)
