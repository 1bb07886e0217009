"""PTX, as Triton's LLVM writes it, to instructions in basic blocks."""

import re
from typing import NamedTuple


class Place(NamedTuple):
    """An operand [base + offset]; base is a register, a parameter, the shared memory's name or None."""

    base: str | None
    offset: int


Operand = str | list[str] | Place  # a list is {a, b}


class Instruction(NamedTuple):
    op: list[str]  # "ld.global.v2.b32", split at dots
    operands: list[Operand]
    guard: str | None  # "%p3" or "!%p3"
    text: str
    line: int  # of the PTX
    source: str  # "reweight.py:28:29 @[ ... ]"


class Kernel(NamedTuple):
    name: str
    params: list[str]
    registers: dict[str, str]  # name -> declared type
    blocks: list[list[Instruction]]  # a branch or ret only at the end
    labels: dict[str, int]  # label -> block


_TOKEN = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{}\[\]][^,{}\[\]]*")
_PLACE = re.compile(r"\[\s*([%$\w]+)?\s*(?:\+?\s*(-?(?:0x)?[0-9a-fA-F]+))?\s*\]")


def parse(text: str) -> Kernel:
    lines = text.split("\n")
    entry = next(i for i, line in enumerate(lines) if ".entry" in line)
    start = next(i for i, line in enumerate(lines) if i >= entry and line.startswith("{"))
    header = "\n".join(lines[entry:start])
    name = re.search(r"\.entry\s+([\w$]+)", header)
    assert name is not None
    params = re.findall(r"\.param\s+\.\w+(?:\s+\.\w+(?:\s+\d+)?)*\s+([\w$]+)", header)
    kernel = Kernel(name[1], params, {}, [[]], {})
    source, pending = "", ""
    scopes = _Scopes(kernel.registers)
    for number, raw in enumerate(lines[start + 1 :], start + 2):
        if raw.startswith("}"):
            break
        line, _, comment = raw.partition("//")
        line = line.strip()
        label = re.match(r"([$\w]+):$", line)
        if line.startswith(".loc"):
            source = comment.strip()
        elif line.startswith(".reg"):
            declared = re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>;", line)
            assert declared is not None, line
            kernel.registers.update({f"{declared[2]}{i}": declared[1] for i in range(int(declared[3]))})
        elif label:
            if label[1].startswith("$L__BB"):  # the others are debug information's
                if kernel.blocks[-1]:
                    kernel.blocks.append([])
                kernel.labels[label[1]] = len(kernel.blocks) - 1
        elif line and not line.startswith((".file", ".pragma")):
            statements, pending = scopes.statements(f"{pending} {line}")
            for statement in statements:
                instruction = _instruction(statement, number, source)
                kernel.blocks[-1].append(instruction)
                if instruction.op[0] in ("bra", "ret", "exit"):
                    kernel.blocks.append([])
    if pending.strip():
        raise NotImplementedError(f"unfinished statement {pending!r}")
    return kernel


class _Scopes:
    """Statements of inline assembly: several in a line, one in several lines, registers of their own in { }."""

    def __init__(self, registers: dict[str, str]) -> None:
        self.registers, self.names, self.number = registers, dict[str, str](), 0

    def statements(self, text: str) -> tuple[list[str], str]:
        """(whole statements, the beginning of the next)."""
        found: list[str] = []
        if text.count("{") != text.count("}") and not re.match(r"\s*\{\s*(\.reg|$)", text):
            return found, text
        while True:
            text = text.strip()
            if opened := re.match(r"\{\s*(?=\.reg|@|[a-z]+\.|$)", text):
                self.number += 1
                text = text[opened.end() :]
            elif text.startswith("}"):
                self.names, text = {}, text[1:]
            else:
                statement, semicolon, rest = text.partition(";")
                if not semicolon:
                    return found, text
                text = rest
                if declared := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement):
                    for name in map(str.strip, declared[2].split(",")):
                        self.names[name] = f"%scope{self.number}_{name}"
                        self.registers[self.names[name]] = declared[1]
                elif statement.strip():
                    for name, full in self.names.items():
                        statement = re.sub(rf"(?<![\w%$]){re.escape(name)}\b", full, statement)
                    found.append(statement.strip())


def _instruction(statement: str, line: int, source: str) -> Instruction:
    found = re.match(r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)", statement, re.S)
    assert found is not None, statement
    guard, op, rest = found.groups()
    operands: list[Operand] = []
    for token in map(str.strip, _TOKEN.findall(rest)):
        if token.startswith("{"):
            operands.append([t.strip() for t in token[1:-1].split(",")])
        elif token.startswith("["):
            place = _PLACE.fullmatch(token)
            if place is None:
                raise NotImplementedError(f"address {token}")
            operands.append(Place(place[1], int(place[2] or "0", 0)))
        else:
            operands.extend(t.strip() for t in token.split("|"))  # two predicates: p|q
    return Instruction(op.split("."), operands, guard, statement, line, source)
