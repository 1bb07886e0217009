"""Writes the kernel as Hugging Face's Kernel Hub takes it: python -m tools.hub FOLDER

FOLDER/build has a variant for each backend of the Hub: a Python package that imports only from itself, PyTorch and
Triton. It is copied from the repository: `ulsam_fused/layers.py`, `ulsam_fused/functional.py`, and what these import.
Its operators have a name of their own, so that it may be loaded beside ulsam_fused and other versions of itself.
"""

import argparse
import ast
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("cpu", "cuda", "rocm")
ROOTS = ("ulsam_fused/layers.py", "ulsam_fused/functional.py")
BY_NAME = ("torch_backend", "kernels/gpu")  # folders that ulsam_fused/backends.py imports when a call needs them
OPERATORS = re.compile(r'(?<=torch\.ops\.)ulsam_fused\b|(?<=Library\(")ulsam_fused\b|(?<=")ulsam_fused(?=::)')
INIT = '''\
"""ULSAM, ultra-lightweight subspace attention (WACV 2020), fused. `layers` replace the authors' modules."""

from . import layers
from .functional import subspace_attention

__all__ = ["layers", "subspace_attention"]
'''
CARD = """\
---
license: mit
tags: [kernels]
---

ULSAM, ultra-lightweight subspace attention for compact CNNs (WACV 2020), fused in Triton kernels; on a CPU in PyTorch.

    from kernels import get_kernel
    ulsam = get_kernel("OWNER/ulsam-fused", version=1)
    y = ulsam.subspace_attention(x, dw_weight, pw_weight, num_splits)

`layers.ULSAM` and `layers.SubSpace` replace the forward of the authors' modules of these names (`kernels.kernelize`).
"""


def imported(path: str) -> Iterator[str]:
    """The files of the repository that a file imports."""
    package = _package(path).split("/")
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) + 1 - node.level] + (node.module or "").split(".") * bool(node.module)
        for name in [[], *([alias.name] for alias in node.names)]:
            found = _file("/".join([*base, *name]))
            if found is not None:
                yield found


def _package(path: str) -> str:
    """The folder of a file as Python names it: kernels/ is ulsam_fused/kernels/."""
    return re.sub("^kernels/", "ulsam_fused/kernels/", path).rpartition("/")[0]


def _file(module: str) -> str | None:
    module = module.replace("ulsam_fused/kernels", "kernels")
    names = (f"{module}.py", f"{module}/__init__.py")
    return next((name for name in names if (ROOT / name).is_file() and name != "ulsam_fused/__init__.py"), None)


def needed() -> list[str]:
    """All files of the copy."""
    folders = [ROOT / ("" if name.startswith("kernels") else "ulsam_fused") / name for name in BY_NAME]
    waiting = [*ROOTS, *(p.relative_to(ROOT).as_posix() for folder in folders for p in folder.rglob("*.py"))]
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            folder = Path(path).parent / "__init__.py"
            waiting += [*imported(path), *([folder.as_posix()] if folder != Path("ulsam_fused/__init__.py") else [])]
    return sorted(found)


def write(folder: Path) -> None:
    """Write the repository of the Hub: a card, and build/ with all variants."""
    texts = {path.removeprefix("ulsam_fused/"): (ROOT / path).read_text(encoding="utf-8") for path in needed()}
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:8]
    for backend in VARIANTS:
        name = f"_ulsam_fused_{backend}_{digest}"
        variant = folder / "build" / f"torch-{backend}"
        for path, text in {**texts, "__init__.py": INIT}.items():
            target = variant / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(OPERATORS.sub(name, text), encoding="utf-8")
        metadata = {"id": name, "name": "ulsam-fused", "version": 1, "license": "MIT", "python-depends": []}
        text = json.dumps({**metadata, "backend": {"type": backend}}, indent=2)
        (variant / "metadata.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; files of the same names are replaced")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
