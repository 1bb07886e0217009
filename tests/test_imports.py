"""What an import brings along, seen in fresh processes, and the one direction in which the package's imports run."""

import ast
import graphlib
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import ulsam_fused
from processes import ROOT, run_python

PACKAGE = Path(ulsam_fused.__file__).resolve().parent
KERNELS = PACKAGE / "kernels" if (PACKAGE / "kernels").is_dir() else PACKAGE.parent / "kernels"

# A file imports from lower layers only. Files of one layer do not know each other; inside a folder (named here with a
# dot at its end) they may, as long as no circle arises.
LAYERS = (
    ("__main__",),
    ("train", "train."),
    ("cli", "cli."),
    ("",),  # ulsam_fused/__init__.py, the public names
    ("models", "models."),
    ("conversion",),
    ("obstacles", "replacements"),
    ("shared", "upstream"),
    ("modules",),
    ("functional", "norm_functional"),
    ("explanation", "flops"),
    ("norm_autograd",),
    ("autograd", "norm_ops"),
    ("ops",),
    ("kernels.norm_launcher",),
    ("kernels.norm_backward_launcher",),
    ("torch_backend", "torch_norm", "kernels.launcher"),
    ("kernels.norm_plans",),
    ("kernels.plans",),
    ("kernels.norm_backward", "kernels.norm_forward"),
    ("backends", "tracing", "torch_primitives", "kernels.backward", "kernels.forward", "kernels.moments"),
    ("kernels.march_columns", "kernels.march_lanes"),
    ("kernels.routing",),
    ("attributes", "batch_norm", "checks", "distributed", "proof", "state_dict", "structure"),
    ("kernels.columns", "kernels.reweight"),
    ("kernels.geometry", "kernels.primitives"),
    ("kernels.config", "kernels.launch"),
    ("kernels",),
    ("reference", "_version"),
)


def _in_fresh_process(code: str, cwd: Path) -> str:
    return run_python(["-c", textwrap.dedent(code)], cwd=cwd, env={"PYTHONPATH": str(PACKAGE.parent)})


def test_import_brings_neither_triton_nor_matplotlib(tmp_path: Path) -> None:
    _in_fresh_process(
        """
        import os, sys
        before = dict(os.environ)
        import ulsam_fused, ulsam_fused.cli, ulsam_fused.kernels.config
        brought = sorted({name.split(".")[0] for name in sys.modules} & {"triton", "matplotlib", "PIL", "kernels"})
        assert not brought, brought
        assert dict(os.environ) == before, "importing changed the environment"
        """,
        tmp_path,
    )


def test_a_cpu_call_brings_no_triton(tmp_path: Path) -> None:
    _in_fresh_process(
        """
        import sys, torch
        import ulsam_fused as uf
        x, weight = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(4)
        uf.subspace_attention(x, weight, weight, 2).sum().backward()
        assert "triton" not in sys.modules
        """,
        tmp_path,
    )


def test_works_without_triton(tmp_path: Path) -> None:
    _in_fresh_process(
        """
        import sys, torch

        class NoTriton:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "triton":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NoTriton())
        import ulsam_fused as uf

        torch.manual_seed(0)
        x, scale, v = torch.randn(2, 6, 5, 4), torch.randn(6), torch.randn(6)
        expected = uf.reference.subspace_attention(x, scale, v, 3)
        for backend in ("torch", "auto", "reference"):
            torch.testing.assert_close(uf.subspace_attention(x, scale, v, 3, backend=backend), expected)
        assert "torch" in uf.explain(x, 3)

        layer = uf.ULSAM(6, 3, backend="triton")
        for call in (lambda: uf.subspace_attention(x, scale, v, 3, backend="triton"), lambda: layer(x)):
            try:
                call()
            except RuntimeError as error:
                assert "triton" in str(error).lower() and "import" in str(error), str(error)
            else:
                raise AssertionError('backend "triton" served a call without Triton')
        """,
        tmp_path,
    )


def test_kernels_are_loaded_once_and_under_the_package(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    _in_fresh_process(
        """
        import collections, sys
        import ulsam_fused, ulsam_fused.kernels.launcher
        assert "kernels" not in sys.modules
        names = collections.defaultdict(list)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name.startswith(("ulsam_fused", "kernels")):
                names[file].append(name)
        assert len(names) > 5 and all(len(group) == 1 for group in names.values()), names
        """,
        tmp_path,
    )


def _sources() -> dict[str, str]:
    """The package's files by their dotted names inside it, "" being ulsam_fused/__init__.py."""
    sources = {}
    for folder, prefix in ((PACKAGE, ()), (KERNELS, ("kernels",))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def _imports(source: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Of every import statement wherever it stands, the level, the module and the names taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)


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


def _layer(name: str) -> int | None:
    for i, layer in enumerate(LAYERS):
        if name in layer or any(entry.endswith(".") and name.startswith(entry) for entry in layer):
            return i
    return None


def _against_the_direction(sources: dict[str, str]) -> list[str]:
    wrong = []
    for name, imported in _graph(sources).items():
        for other in imported:
            here, there = _layer(name), _layer(other)
            assert here is not None, f"give {name} a place in LAYERS"
            assert there is not None, f"{name} imports {other}, which has no place in LAYERS"
            if here > there or (here == there and not any(entry.endswith(".") for entry in LAYERS[here])):
                wrong.append(f"{name or '__init__'} imports {other or '__init__'}")
    return sorted(wrong)


def test_imports_run_one_way() -> None:
    sources = _sources()
    assert {"", "cli", "functional", "kernels", "kernels.config", "modules", "reference"} <= set(sources)
    assert _against_the_direction(sources) == []
    tuple(graphlib.TopologicalSorter(_graph(sources)).static_order())  # raises CycleError


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("kernels.config", "from .. import functional", "kernels.config imports functional"),
        ("kernels.forward", "def f():\n    from .launcher import forward", "kernels.forward imports kernels.launcher"),
        ("ops", "from . import autograd", "ops imports autograd"),
        ("ops", "import ulsam_fused.modules", "ops imports modules"),
        ("functional", "from . import ULSAM", "functional imports __init__"),
        ("torch_backend", "from .kernels import launcher", "torch_backend imports kernels.launcher"),
        ("reference", "from ._version import __version__", "reference imports _version"),
    ],
)
def test_an_import_against_the_direction_is_noticed(name: str, line: str, wrong: str) -> None:
    planted = _sources() | {name: line}
    assert wrong in _against_the_direction(planted)


def test_an_import_in_a_circle_is_noticed() -> None:
    planted = _sources() | {"cli.info": "from . import check", "cli.check": "from .info import x"}
    assert _against_the_direction(planted) == []
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(_graph(planted)).static_order())


def test_reference_imports_nothing_of_the_package() -> None:
    assert _graph(_sources())["reference"] == set()


def test_kernels_import_relatively_and_only_each_other() -> None:
    sources = _sources()
    graph = _graph(sources)
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
