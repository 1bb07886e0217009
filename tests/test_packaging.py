"""Every way to have the package gives `ulsam_fused` and `ulsam_fused.kernels`: wheel, sdist, editable, plain checkout.

Built without network from a copy of the tree, unpacked into folders of their own, imported in fresh processes. The
wheel is built from the sdist, as `python -m build` does it.
"""

import configparser
import email
import importlib.metadata
import importlib.util
import json
import re
import runpy
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


_NEEDED = {"build": 1, "setuptools": 77}
_LACKING = [f"{tool}>={oldest}" for tool, oldest in _NEEDED.items() if _too_old(tool, oldest)]
pytestmark = [
    pytest.mark.slow,  # builds and imports the package in about ten processes
    pytest.mark.xdist_group("packaging"),
    pytest.mark.skipif(bool(_LACKING), reason=f"building needs {', '.join(_LACKING)}"),
]

_NOT_SOURCE = (".git", ".venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")

# Prints what a process imports, and from where, one line for each place in argv[1]. With dependencies (argv[2:]) a
# place is the site-packages of an interpreter, and they stand behind it: neither this environment's own installation of
# the package nor its .pth files come into play. Without, a place is the working directory. Importing torch is what
# costs, so processes are forked after it. The first import is the one that unpickling makes, as in a process that
# another one has spawned.
_REPORT = """
import importlib, importlib.resources, json, os, pickle, site, sys
places, dependencies = json.loads(sys.argv[1]), sys.argv[2:]
standard = list(sys.path)
sys.path += dependencies
sys.dont_write_bytecode = True
import torch

def answer(name):
    try:
        return importlib.import_module(name).__file__
    except ImportError as error:
        return f"{type(error).__name__}: {error}"

def report():
    LaunchConfig = pickle.loads(b"culsam_fused.kernels.gpu.launching.config\\nLaunchConfig\\n.")
    import ulsam_fused, ulsam_fused.cli, ulsam_fused.kernels.gpu.launching.config as config
    assert config.LaunchConfig is LaunchConfig
    assert callable(ulsam_fused.cli.main)
    top = sorted({name for name in sys.modules if name.split(".")[0] in ("kernels", "tests", "benchmarks")})
    folders = ("ulsam_fused", "tests", "benchmarks", "examples", "docs", "tools")
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

for place in places:
    child = os.fork()
    if child == 0:
        if dependencies:
            sys.path[:] = standard
            site.addsitedir(place)
            sys.path += dependencies
        else:
            os.chdir(place)
        report()
        break
    assert os.waitpid(child, 0)[1] == 0, place
"""


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


def _unpacked(wheel: Path, destination: Path) -> Path:
    zipfile.ZipFile(wheel).extractall(destination)
    return destination


def _reports(arguments: list[str], places: list[Path], dependencies: list[str], **options: Any) -> list[dict[str, Any]]:
    given = [*arguments, "-c", _REPORT, json.dumps([str(place) for place in places]), *dependencies]
    return [json.loads(line) for line in run_python(given, **options).splitlines()]


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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is built in it."""
    return _copy(tmp_path_factory.mktemp("plain") / "tree")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and a wheel."""
    tree = _copy(tmp_path_factory.mktemp("built") / "tree")
    run_python(["-m", "build", "--no-isolation", "--outdir", "built", "."], cwd=tree)
    return tree / "built"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpacked(wheel, tmp_path_factory.mktemp("installed"))


# calls what pip calls; strict is the mode that pyproject.toml chooses, and for the others one has to ask
_EDITABLE = """
from setuptools import build_meta
for mode in ("lenient", "compat", "strict"):
    build_meta.build_editable(f"../{mode}", None if mode == "strict" else {"editable_mode": mode})
"""


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A tree, and by mode a folder into which it was installed."""
    folder = tmp_path_factory.mktemp("editable")
    tree = _copy(folder / "tree")
    run_python(["-c", _EDITABLE], cwd=tree)
    wheels = {mode: next((folder / mode).iterdir()) for mode in ("lenient", "compat", "strict")}
    return tree, {mode: _unpacked(wheel, folder / f"{mode}_installed") for mode, wheel in wheels.items()}


def test_installations_import(installed_wheel: Path, editable: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    tree, installed = editable
    places = [installed_wheel, *installed.values()]
    of_wheel, lenient, compat, strict = _reports(["-I", "-S"], places, _dependencies(), cwd=tmp_path)
    package = installed_wheel / "ulsam_fused"
    _assert_from(of_wheel, package, package / "kernels")
    _needs_no_other_installation()
    for folder in installed.values():
        assert not (folder / "ulsam_fused").exists(), "the package was copied, so the installation is not editable"
    for report in (lenient, compat):
        _assert_from(report, tree / "ulsam_fused", tree / "kernels")
    links = Path(strict["package"]).parent
    assert tree.resolve() / "build" in links.parents
    _assert_from(strict, links, links / "kernels")
    for ours, theirs in ((links, tree / "ulsam_fused"), (links / "kernels", tree / "kernels")):
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


@pytest.fixture(params=["wheel", "editable"])
def interpreter(
    request: pytest.FixtureRequest, installed_wheel: Path, editable: tuple[Path, dict[str, Path]], tmp_path: Path
) -> Path:
    """One whose site-packages holds the installation. Beside it, in tmp_path, lies the user's code.

    The wheel was built of the sdist, and without isolation: pip gives the same from either, and so does
    `--no-build-isolation`.
    """
    run_python(["-m", "venv", "--without-pip", "venv"], cwd=tmp_path)
    (places,) = (tmp_path / "venv").glob("[lL]ib/**/site-packages")
    shutil.copytree(installed_wheel if request.param == "wheel" else editable[1]["strict"], places, dirs_exist_ok=True)
    (places / "dependencies.pth").write_text("\n".join(_dependencies()))
    (tmp_path / "user.py").write_text(_USER)
    (found,) = (path for path in (tmp_path / "venv").glob("*/python*") if path.stem == "python")
    return found


def test_mypy_sees_the_package(interpreter: Path, mypy_cache: Path, tmp_path: Path) -> None:
    """Told nothing but which interpreter is used."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    options = ["--python-executable", str(interpreter), "--cache-dir", str(mypy_cache), "user.py"]
    done = subprocess.run([*mypy, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    revealed = re.findall(r'note: Revealed type is "(.*)"', done.stdout)
    assert [found.replace("builtins.", "") for found in revealed] == _REVEALED, done.stdout + done.stderr
    (error,) = (line for line in done.stdout.splitlines() if ": error: " in line)
    assert "[arg-type]" in error or "[call-overload]" in error


def test_pyright_sees_the_package(interpreter: Path, tmp_path: Path) -> None:
    """As mypy does; `make release-check` brings it."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright")
    pyright = [sys.executable, "-m", "pyright", "--pythonpath", str(interpreter), "--outputjson", "user.py"]
    done = subprocess.run(pyright, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [re.findall(r'is "([^"]*)"$', one["message"])[0] for one in found if one["severity"] == "information"]
    assert revealed == [re.sub(r"[a-z_.]+\.(?=[A-Z])", "", name) for name in _REVEALED], done.stdout
    (error,) = (one for one in found if one["severity"] == "error")
    assert error["rule"] in ("reportArgumentType", "reportCallIssue")


def test_plain_checkout_imports(tree: Path, tmp_path: Path) -> None:
    """From the checkout, and from elsewhere by PYTHONPATH."""
    for report in _reports([], [tree, tmp_path], [], cwd=tree, env={"PYTHONPATH": str(tree)}):
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
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "completion",
        "docs",
        "onnx",
        "plot",
        "release",
        "test",
        "train",
    }
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "# ulsam_fused" in str(metadata.get_payload())
    assert re.findall(r"\]\((?!https?:)[^)]*\)", str(metadata.get_payload())) == [], "nothing lies beside it there"
    needed = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert needed == {"torch>=2.10", "numpy"}, "torch brings the Triton that fits it"
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"ulsam-fused": "ulsam_fused.cli:main"}


def test_readme_of_a_package_index_links_to_the_repository() -> None:
    """Once pyproject.toml has its address."""
    script = runpy.run_path(str(ROOT / "setup.py"))
    assert script["address"]('# Source = "https://HOST/OWNER"\n') is None
    address = script["address"]('Source = "https://host/owner/ulsam_fused"\n')
    readme = "![Speed](a/b.png) of [it](docs/x.md#y), [there](https://z/)"
    assert script["absolute"](readme, address) == (
        "![Speed](https://host/owner/ulsam_fused/raw/main/a/b.png) of "
        "[it](https://host/owner/ulsam_fused/blob/main/docs/x.md#y), [there](https://z/)"
    )
    assert script["absolute"](readme, None) == " of it, [there](https://z/)"


def test_sdist_holds_the_repository(built: Path, tree: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = _files(tree) - names
    assert not missing, f"give them a place in MANIFEST.in: {sorted(missing)}"
