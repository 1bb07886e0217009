"""Every message that the package can give a user, read from its source: errors, warnings, and reasons inside them.

A message is written with … where the code puts a value in.
"""

import ast
import re
from collections.abc import Iterator

from tests.helpers.processes import ROOT

_WARNINGS = {"warnings.warn", "parser.error"}


def messages() -> dict[str, str]:
    """Each message, and a file that has it.

    Left out are single words, and those that only pass another message on: `…: …`.
    """
    found = {}
    for path in sorted((ROOT / "kernels" / "cpu").glob("*.[ch]*")):
        source = path.read_text(encoding="utf-8")
        for text in re.findall(r'STD_TORCH_CHECK\([^;]*?"([^"]*)"\)', source):
            found[text] = path.relative_to(ROOT).as_posix()
    for folder in ("ulsam_fused", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for expression in _expressions(ast.parse(path.read_text(encoding="utf-8"))):
                for text in _texts(expression):
                    if re.search(r"[a-zA-Z]{2}", text) and " " in text:
                        found[" ".join(text.split())] = path.relative_to(ROOT).as_posix()
    return found


def _expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """What exceptions and warnings say; reasons: what is called so, and what functions return that give one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from node.exc.args[:1]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _WARNINGS:
            yield from node.args[:1]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
            yield node.value
        elif isinstance(node, ast.FunctionDef) and _gives_a_reason(node):
            yield from (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value)


def _gives_a_reason(function: ast.FunctionDef) -> bool:
    returns = "" if function.returns is None else ast.unparse(function.returns)
    return returns == "str | None" or (ast.get_docstring(function) or "").startswith("A reason")


def _texts(node: ast.expr) -> list[str]:
    """What an expression can say: both branches of a condition, both sides of an `or`."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.FormattedValue(value=ast.IfExp() as chosen):
            return [text if isinstance(text, str) else "…" for text in _texts(chosen)]
        case ast.JoinedStr(values=parts):
            return _joined(parts)
        case ast.BinOp(op=ast.Add()):
            return _joined([node.left, node.right])
        case ast.IfExp():
            return _texts(node.body) + _texts(node.orelse)
        case ast.BoolOp():
            return [text for value in node.values for text in _texts(value)]
        case _:
            return ["…"]


def _joined(parts: list[ast.expr]) -> list[str]:
    texts = [""]
    for part in parts:
        texts = [before + text for before in texts for text in _texts(part)]
    return [re.sub("…+", "…", text) for text in texts]
