"""Every way to have the package gives `ulsam_fused` and `ulsam_fused.kernels`: wheel, sdist, editable, plain checkout.

Built without network from a copy of the tree, installed into folders of their own, imported in fresh processes.
"""

import configparser
import email
import importlib.metadata
import json
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

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
    pytest.mark.xdist_group("packaging"),
    pytest.mark.skipif(bool(_LACKING), reason=f"building needs {', '.join(_LACKING)}"),
]

_NOT_SOURCE = (".git", ".venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")

# prints what a process imports, and from where
_REPORT = """
import importlib, json, sys
import ulsam_fused, ulsam_fused.cli, ulsam_fused.kernels.gpu.launching.config as config
print(json.dumps({
    "package": ulsam_fused.__file__,
    "cli": ulsam_fused.cli.__file__,
    "config": config.__file__,
    "version": ulsam_fused.__version__,
    "top": sorted({name for name in sys.modules if name.split(".")[0] in ("kernels", "tests", "benchmarks")}),
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


def _imported(installed: Path, cwd: Path) -> dict[str, str]:
    report: dict[str, str] = json.loads(
        run_python(["-I", "-S", "-c", _INSTALLED, str(installed), *_dependencies()], cwd=cwd)
    )
    return report


def _assert_from(report: dict[str, str], package: Path, kernels: Path) -> None:
    assert Path(report["package"]).resolve() == (package / "__init__.py").resolve()
    assert Path(report["cli"]).resolve() == (package / "cli" / "__init__.py").resolve()
    assert Path(report["config"]).resolve() == (kernels / "gpu" / "launching" / "config.py").resolve()
    assert report["version"] == _version()
    assert report["top"] == []


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


@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_editable_imports(mode: str, tree: Path, tmp_path: Path) -> None:
    _needs_no_other_installation()
    settings = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    installed = _install(tmp_path / "installed", *settings, "--editable", str(tree))
    assert not (installed / "ulsam_fused").exists(), "the package was copied, so the installation is not editable"
    report = _imported(installed, tmp_path)
    if mode == "strict":  # a tree of links to the files
        package = Path(report["package"]).parent
        assert tree.resolve() in package.parents
        assert Path(report["config"]).parents[2] in (package / "kernels", tree / "kernels")
        assert (package / "reference.py").samefile(tree / "ulsam_fused" / "reference.py")
        assert Path(report["config"]).samefile(tree / "kernels" / "gpu" / "launching" / "config.py")
        assert report["top"] == []
    else:
        _assert_from(report, tree / "ulsam_fused", tree / "kernels")


@pytest.mark.parametrize("pythonpath", [".", "absolute"])
def test_plain_checkout_imports(pythonpath: str, tree: Path, tmp_path: Path) -> None:
    cwd, value = (tree, ".") if pythonpath == "." else (tmp_path, str(tree))
    report = json.loads(run_python(["-c", _REPORT], cwd=cwd, env={"PYTHONPATH": value}))
    _assert_from(report, tree / "ulsam_fused", tree / "kernels")


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
