"""Every way to have the package gives `ulsam_fused` and `ulsam_fused.kernels`: wheel, sdist, editable, plain checkout.

Built without network from a copy of the tree, installed into folders of their own, imported in fresh processes.
"""

import configparser
import email
import importlib.metadata
import importlib.util
import json
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import ROOT, run_python


def _too_old(tool: str, oldest: int) -> bool:
    try:  # asked of the metadata: importing setuptools changes the process
        return int(importlib.metadata.version(tool).split(".")[0]) < oldest
    except importlib.metadata.PackageNotFoundError:
        return True


_NEEDED = {"build": 1, "pip": 22, "setuptools": 77}
_LACKING = [f"{tool}>={oldest}" for tool, oldest in _NEEDED.items() if _too_old(tool, oldest)]
pytestmark = [
    pytest.mark.slow,  # builds, installs and imports the package in about 20 processes
    pytest.mark.xdist_group("packaging"),
    pytest.mark.skipif(bool(_LACKING), reason=f"building needs {', '.join(_LACKING)}"),
]

_NOT_SOURCE = (".git", ".venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")

# Prints what a process imports, and from where. The first import is the one that unpickling makes, as in a process that
# another one has spawned.
_REPORT = """
import importlib, importlib.resources, json, pickle, sys
LaunchConfig = pickle.loads(b"culsam_fused.kernels.gpu.launching.config\\nLaunchConfig\\n.")
import ulsam_fused, ulsam_fused.cli, ulsam_fused.kernels.gpu.launching.config as config
assert config.LaunchConfig is LaunchConfig

def answer(name):
    try:
        return importlib.import_module(name).__file__
    except ImportError as error:
        return f"{type(error).__name__}: {error}"

top = sorted({name for name in sys.modules if name.split(".")[0] in ("kernels", "tests", "benchmarks")})
folders = ("ulsam_fused", "tests", "benchmarks", "examples", "docs")
print(json.dumps({
    "package": ulsam_fused.__file__,
    "cli": ulsam_fused.cli.__file__,
    "config": config.__file__,
    "version": ulsam_fused.__version__,
    "top": top,
    "reloaded": importlib.reload(ulsam_fused.kernels).__file__,
    "resource": str(importlib.resources.files("ulsam_fused.kernels") / "__init__.py"),
    "inside": {f"ulsam_fused.{name}": answer(f"ulsam_fused.{name}") for name in (*folders, "kernels.kernels")},
    "kernels": answer("kernels"),
}))
"""

# as an interpreter whose site-packages is the folder argv[1], with the dependencies (argv[2:]) behind it: neither this
# environment's own installation of the package nor its .pth files come into play
_INSTALLED = "import site, sys\nsite.addsitedir(sys.argv[1])\nsys.path += sys.argv[2:]\n" + _REPORT


def _dependencies() -> list[str]:
    places = {Path(path).resolve() for path in (*site.getsitepackages(), site.getusersitepackages())}
    return [path for path in sys.path if path and Path(path).resolve() in places]


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _listed_by_git() -> list[str] | None:
    """What git tracks or would add; None without git or outside a clone."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.rstrip("\0").split("\0") if done.returncode == 0 else None


def _copy(destination: Path) -> Path:
    """The tree without what is ignored, so that nothing is written to the checkout."""
    names = _listed_by_git()
    if names is None:
        return Path(shutil.copytree(ROOT, destination, ignore=shutil.ignore_patterns(*_NOT_SOURCE)))
    for name in names:
        if (ROOT / name).is_file():  # git lists deleted files as well
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name)
    return destination


def _build(tree: Path, kind: str) -> Path:
    run_python(["-m", "build", "--no-isolation", f"--{kind}", "--outdir", "built", "."], cwd=tree)
    (built,) = (tree / "built").iterdir()
    return built


def _install(destination: Path, *what: str) -> Path:
    pip = ["-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    run_python([*pip, *offline, "--target", str(destination), *what], cwd=destination.parent)
    return destination


def _imported(installed: Path, cwd: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(
        run_python(["-I", "-S", "-c", _INSTALLED, str(installed), *_dependencies()], cwd=cwd)
    )
    return report


def _assert_from(report: dict[str, Any], package: Path, kernels: Path) -> None:
    """The package and its kernels come from these folders, once and whole, and nothing else of the repository does."""
    assert Path(report["package"]).resolve() == (package / "__init__.py").resolve()
    assert Path(report["cli"]).resolve() == (package / "cli" / "__init__.py").resolve()
    assert Path(report["config"]).resolve() == (kernels / "gpu" / "launching" / "config.py").resolve()
    for again in ("reloaded", "resource"):
        assert Path(report[again]).resolve() == (kernels / "__init__.py").resolve(), again
    assert report["version"] == _version()
    assert report["top"] == []
    for name, answer in report["inside"].items():
        assert answer == f"ModuleNotFoundError: No module named '{name}'"


def _version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / "ulsam_fused" / "_version.py").read_text(), namespace)
    return namespace["__version__"]


def _needs_no_other_installation() -> None:
    """A copy in site-packages itself would be found before an editable installation's finder is asked."""
    for path in _dependencies():
        if (Path(path) / "ulsam_fused").exists():
            pytest.skip(f"ulsam_fused is installed in {path}, which comes before every editable installation")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return _copy(tmp_path / "tree")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(_copy(tmp_path_factory.mktemp("wheel") / "tree"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(_copy(tmp_path_factory.mktemp("sdist") / "tree"), "sdist")


@pytest.fixture(scope="module")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _install(tmp_path_factory.mktemp("installed") / "wheel", str(wheel))


def test_wheel_imports(installed_wheel: Path, tmp_path: Path) -> None:
    package = installed_wheel / "ulsam_fused"
    _assert_from(_imported(installed_wheel, tmp_path), package, package / "kernels")


def test_script_runs_from_a_wheel(installed_wheel: Path, tmp_path: Path) -> None:
    (script,) = (path for path in (installed_wheel / "bin").iterdir() if path.stem == "ulsam-fused")
    printed = run_python([str(script), "--help"], cwd=tmp_path, env={"PYTHONPATH": str(installed_wheel)})
    assert "usage: ulsam-fused" in printed


def test_sdist_builds_and_imports(sdist: Path, tmp_path: Path) -> None:
    installed = _install(tmp_path / "installed", str(sdist))
    package = installed / "ulsam_fused"
    _assert_from(_imported(installed, tmp_path), package, package / "kernels")


@pytest.mark.parametrize("mode", ["lenient", "compat"])
def test_editable_imports(mode: str, tree: Path, tmp_path: Path) -> None:
    """In the modes that one has to ask for."""
    _needs_no_other_installation()
    settings = ["--config-settings", f"editable_mode={mode}"]
    installed = _install(tmp_path / "installed", *settings, "--editable", str(tree))
    assert not (installed / "ulsam_fused").exists(), "the package was copied, so the installation is not editable"
    _assert_from(_imported(installed, tmp_path), tree / "ulsam_fused", tree / "kernels")


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree, and a folder into which it was installed in the mode that pyproject.toml chooses: strict, by links."""
    folder = tmp_path_factory.mktemp("editable")
    tree = _copy(folder / "tree")
    return tree, _install(folder / "installed", "--editable", str(tree))


def test_editable_imports_links(editable: tuple[Path, Path], tmp_path: Path) -> None:
    _needs_no_other_installation()
    tree, installed = editable
    assert not (installed / "ulsam_fused").exists(), "the package was copied, so the installation is not editable"
    report = _imported(installed, tmp_path)
    package = Path(report["package"]).parent
    assert tree.resolve() / "build" in package.parents
    _assert_from(report, package, package / "kernels")
    for ours, theirs in ((package, tree / "ulsam_fused"), (package / "kernels", tree / "kernels")):
        for name in _files(theirs):
            assert (ours / name).samefile(theirs / name), name


# what a user's code reveals, line by line, of the types
_USER = """
import torch
import ulsam_fused as uf
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig, forward_config

x, p = torch.randn(1, 8, 4, 4), torch.randn(8)
layer = uf.ULSAM(8, num_splits=2)
reveal_type(layer)
reveal_type(uf.upstream.ULSAM(8, num_splits=2))
reveal_type(uf.subspace_attention(x, p, p, 2))
reveal_type(uf.subspace_attention(x, p, p, 2, return_attention=True))
reveal_type(uf.explain(x, 2))
reveal_type(forward_config((1, 8, 4, 4), 2, 4, False, 1).split)
uf.subspace_attention(x, p, p, "2")
"""

_REVEALED = [
    "ulsam_fused.modules.ULSAM",
    "ulsam_fused.upstream.ULSAM",
    "torch._tensor.Tensor",
    "tuple[torch._tensor.Tensor, torch._tensor.Tensor]",
    "str",
    "bool",
]


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make lint` has left, if anything: torch is read for half a minute, so not again and not twice."""
    cache = tmp_path_factory.mktemp("mypy") / "cache"
    return Path(shutil.copytree(ROOT / ".mypy_cache", cache)) if (ROOT / ".mypy_cache").exists() else cache


@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_a_type_checker_sees_the_package(
    way: str, installed_wheel: Path, editable: tuple[Path, Path], mypy_cache: Path, tmp_path: Path
) -> None:
    """mypy, told nothing but which interpreter is used: one whose site-packages holds the installation."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy")
    run_python(["-m", "venv", "--without-pip", "venv"], cwd=tmp_path)
    (places,) = (tmp_path / "venv").glob("[lL]ib/**/site-packages")
    shutil.copytree(installed_wheel if way == "wheel" else editable[1], places, dirs_exist_ok=True)
    (places / "dependencies.pth").write_text("\n".join(_dependencies()))
    (interpreter,) = (path for path in (tmp_path / "venv").glob("*/python*") if path.stem == "python")
    (tmp_path / "user.py").write_text(_USER)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    options = ["--python-executable", str(interpreter), "--cache-dir", str(mypy_cache), "user.py"]
    done = subprocess.run([*mypy, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    revealed = re.findall(r'note: Revealed type is "(.*)"', done.stdout)
    assert [found.replace("builtins.", "") for found in revealed] == _REVEALED, done.stdout + done.stderr
    (error,) = (line for line in done.stdout.splitlines() if ": error: " in line)
    assert "[arg-type]" in error or "[call-overload]" in error


@pytest.mark.parametrize("pythonpath", [".", "absolute"])
def test_plain_checkout_imports(pythonpath: str, tree: Path, tmp_path: Path) -> None:
    cwd, value = (tree, ".") if pythonpath == "." else (tmp_path, str(tree))
    report = json.loads(run_python(["-c", _REPORT], cwd=cwd, env={"PYTHONPATH": value}))
    _assert_from(report, tree / "ulsam_fused", tree / "kernels")
    assert report["kernels"].startswith("ImportError: this folder is part of ulsam_fused")


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path, tree: Path) -> None:
    info = f"ulsam_fused-{_version()}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"ulsam_fused", info}
    assert {f"{info}/licenses/LICENSE", "ulsam_fused/py.typed"} <= names
    expected = {f"ulsam_fused/{name}" for name in _files(tree / "ulsam_fused")}
    expected |= {f"ulsam_fused/kernels/{name}" for name in _files(tree / "kernels")}
    assert {name for name in names if name.startswith("ulsam_fused/")} == expected


def test_wheel_metadata(wheel: Path) -> None:
    info = f"ulsam_fused-{_version()}.dist-info"
    archive = zipfile.ZipFile(wheel)
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["Name"] == "ulsam_fused"
    assert metadata["Version"] == _version()
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra", [])) == {"plot", "test", "train"}
    needed = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert needed == {"torch>=2.10", "numpy"}, "torch brings the Triton that fits it"
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"ulsam-fused": "ulsam_fused.cli:main"}


def test_sdist_holds_the_repository(sdist: Path, tree: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = _files(tree) - names
    assert not missing, f"give them a place in MANIFEST.in: {sorted(missing)}"
