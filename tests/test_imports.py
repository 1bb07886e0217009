"""What an import brings along, seen in fresh processes, and the one direction in which the package's imports run."""

import ast
import functools
import graphlib
import importlib.util
import sys
from pathlib import Path

import pytest

import ulsam_fused
from tests.helpers.processes import ROOT, run_python
from ulsam_fused import _startup

PACKAGE = Path(ulsam_fused.__file__).resolve().parent
KERNELS = PACKAGE / "kernels" if (PACKAGE / "kernels").is_dir() else PACKAGE.parent / "kernels"

# Rooms, from the top down. A room is a folder, or a file of ulsam_fused/ itself ("" is ulsam_fused/__init__.py).
# Its files import from each other and from lower rooms only, and nowhere in a circle. In kernels.gpu the two doors
# stand above launching, which chooses and launches kernels, and the kernels stand below it.
ROOMS = (
    ("__main__",),
    ("train",),
    ("cli",),
    ("cli.options",),
    ("bench",),
    ("console",),
    ("",),
    ("conversion",),
    ("models",),
    ("upstream", "explanation"),
    ("modules", "layers"),
    ("functional",),
    ("ops",),
    ("torch_backend",),
    ("kernels.gpu.backend", "kernels.gpu.norm_backend"),
    ("kernels.gpu.launching",),
    ("kernels.gpu",),
    ("kernels.gpu.device",),
    ("backends", "distributed", "state_dict", "flops"),
    ("kernels.cpu",),
    ("kernels",),
    ("reference", "_version", "_checkout", "_names", "_startup"),
)


# Every claim about imports, in one process: importing PyTorch is what costs.
_CLAIMS = f"""
import collections, importlib.util, os, sys
before = dict(os.environ)
import ulsam_fused, ulsam_fused.cli, ulsam_fused.kernels.gpu.launching.config
brought = sorted({{name.split(".")[0] for name in sys.modules}} & {{"triton", "matplotlib", "PIL", "kernels"}})
assert not brought, brought
assert dict(os.environ) == before, "importing changed the environment"

# a call on a CPU brings no Triton
import torch
import ulsam_fused as uf
x, scale, v = torch.randn(2, 6, 5, 4, requires_grad=True), torch.randn(6), torch.randn(6)
uf.subspace_attention(x, scale, v, 3).sum().backward()
assert "triton" not in sys.modules

# all but one backend works without it
class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

installed = importlib.util.find_spec("triton") is not None
sys.meta_path.insert(0, NoTriton())
expected = uf.reference.subspace_attention(x, scale, v, 3)
for backend in ("torch", "auto", "reference"):
    torch.testing.assert_close(uf.subspace_attention(x, scale, v, 3, backend=backend), expected)
assert "backend: triton" not in uf.explain(x, 3)
layer = uf.ULSAM(6, 3, backend="triton")
for call in (lambda: uf.subspace_attention(x, scale, v, 3, backend="triton"), lambda: layer(x)):
    try:
        call()
    except RuntimeError as error:
        assert "triton" in str(error).lower() and "import" in str(error), str(error)
    else:
        raise AssertionError('backend "triton" served a call without Triton')
del sys.meta_path[0]

# kernels are loaded once, and under the package
if installed:
    import ulsam_fused.kernels.gpu.backend
assert "kernels" not in sys.modules
names = collections.defaultdict(list)
for name, module in list(sys.modules.items()):
    if name.startswith(("ulsam_fused", "kernels")):
        names[getattr(module, "__file__", None) or ""].append(name)
assert len(names) > 5 and all(len(group) == 1 for group in names.values()), names

# PyPI has a distribution `kernels`, and other packages look for it: our folder refuses to be taken for it
sys.path.insert(0, {str(KERNELS.parent)!r})
try:
    import kernels
except ImportError as error:
    assert "import it as `ulsam_fused.kernels`" in str(error), error
else:
    raise AssertionError(kernels.__file__)
print("all hold")
"""


@pytest.mark.slow  # imports PyTorch and Triton
def test_what_imports_bring(tmp_path: Path) -> None:
    assert run_python(["-c", _CLAIMS], cwd=tmp_path, env={"PYTHONPATH": str(PACKAGE.parent)}) == "all hold\n"


@pytest.mark.parametrize(
    ("first", "whole", "expected"),
    [
        ("-m", ["python", "-m", "ulsam_fused", "info"], True),
        ("-m", ["python", "-u", "-m", "ulsam_fused.train", "--data", "x"], True),
        ("-m", ["python", "-mulsam_fused.cli"], True),
        ("-m", ["python", "-m", "benchmarks.on_cpu"], False),
        ("/home/x/bin/ulsam-fused", ["python", "/home/x/bin/ulsam-fused", "info"], True),
        ("ulsam-fused.exe", ["ulsam-fused.exe"], True),
        ("/lib/pytest/__main__.py", ["python", "-m", "pytest", "ulsam_fused"], False),
        ("train.py", ["python", "train.py", "-m", "ulsam_fused"], False),
        ("", ["python"], False),
    ],
)
def test_a_command_is_known_by_how_python_was_started(
    first: str, whole: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [first])
    monkeypatch.setattr(sys, "orig_argv", whole)
    assert _startup.is_command() is expected


def test_nothing_else_of_the_repository_is_inside_the_package() -> None:
    assert importlib.util.find_spec("ulsam_fused.kernels") is not None
    for name in ("ulsam_fused", "tests", "benchmarks", "examples", "docs", "tools", "kernels.kernels"):
        assert importlib.util.find_spec(f"ulsam_fused.{name}") is None, name


def _sources() -> dict[str, str]:
    """The package's files by their dotted names inside it, "" being ulsam_fused/__init__.py."""
    sources = {}
    for folder, prefix in ((PACKAGE, ()), (KERNELS, ("kernels",))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


@functools.cache  # parsing is what costs
def _imports(source: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """Of every import statement wherever it stands, the level, the module and the names taken from it."""
    found: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return found


def _own_imports(name: str, source: str, folders: set[str], modules: set[str]) -> set[str]:
    """The package's modules that the module `name` imports, as the dotted names of `_sources`."""
    package = ["ulsam_fused", *(name.split(".") if name else [])]
    if name not in folders:
        package.pop()
    found = set()
    for level, module, names in _imports(source):
        parts = (package[: len(package) - level + 1] if level else []) + (module.split(".") if module else [])
        if parts[:1] != ["ulsam_fused"]:
            assert not level, f"{name} imports from above the package: {'.' * level}{module}"
            continue
        base = ".".join(parts[1:])
        found |= {inner if (inner := f"{base}.{taken}".lstrip(".")) in modules else base for taken in names} or {base}
    return found


def _graph(sources: dict[str, str]) -> dict[str, set[str]]:
    modules = set(sources)
    folders = {"", *(name.rpartition(".")[0] for name in modules)}
    return {name: _own_imports(name, source, folders, modules) - {name} for name, source in sources.items()}


def _room(name: str, sources: dict[str, str]) -> tuple[str, int]:
    """The room of a module, and how far down it is."""
    folders = {"", *(other.rpartition(".")[0] for other in sources)}
    named = any(name in rooms for rooms in ROOMS)
    room = name if named or name in folders else name.rpartition(".")[0] or name
    places = [i for i, rooms in enumerate(ROOMS) if room in rooms]
    assert places, f"give {room} a place in ROOMS"
    return room, places[0]


def _against_the_direction(sources: dict[str, str]) -> list[str]:
    wrong = []
    for name, imported in _graph(sources).items():
        room, place = _room(name, sources)
        for other in imported:
            other_room, other_place = _room(other, sources)
            if room != other_room and place >= other_place:
                wrong.append(f"{name or '__init__'} imports {other or '__init__'}")
    return sorted(wrong)


def test_imports_run_one_way() -> None:
    sources = _sources()
    assert {"", "cli", "functional", "kernels", "kernels.gpu.backend", "modules", "reference"} <= set(sources)
    assert _against_the_direction(sources) == []
    tuple(graphlib.TopologicalSorter(_graph(sources)).static_order())  # raises CycleError


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("kernels.gpu.launching.config", "from ..backend import x", "imports kernels.gpu.backend"),
        ("kernels.gpu.forward", "def f():\n    from ... import functional", "imports functional"),
        ("ops.registration", "import ulsam_fused.modules", "imports modules"),
        ("functional", "from . import ULSAM", "imports __init__"),
        ("torch_backend.backend", "from ..ops import checks", "imports ops.checks"),
        ("reference", "from ._version import __version__", "imports _version"),
    ],
)
def test_an_import_against_the_direction_is_noticed(name: str, line: str, wrong: str) -> None:
    assert f"{name} {wrong}" in _against_the_direction(_sources() | {name: line})


def test_an_import_in_a_circle_is_noticed() -> None:
    planted = _sources() | {"cli.info": "from . import check", "cli.check": "from .info import x"}
    assert _against_the_direction(planted) == []
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(_graph(planted)).static_order())


def test_reference_imports_nothing_and_kernels_only_each_other_relatively() -> None:
    sources = _sources()
    graph = _graph(sources)
    assert graph["reference"] == set()
    for name in sources:
        if name.split(".")[0] == "kernels":
            assert all(other.split(".")[0] == "kernels" for other in graph[name]), (name, graph[name])
            absolute = [module for level, module, _ in _imports(sources[name]) if not level]
            assert not [module for module in absolute if module.split(".")[0] == "ulsam_fused"], name


def test_nothing_imports_kernels_as_a_top_level_package() -> None:
    files = [path for folder in (PACKAGE, KERNELS) for path in folder.rglob("*.py")]
    files += [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        imports = _imports(path.read_text(encoding="utf-8"))
        assert "kernels" not in {module.split(".")[0] for level, module, _ in imports if not level}, path
