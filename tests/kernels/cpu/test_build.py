"""How the library is made: its key, its place, and what is said where it cannot be had. Compilers here are scripts."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ulsam_fused.kernels.cpu import build

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="is not built there")

LIBRARY = """#!/bin/sh
case "$*" in *--version*) echo "pretended 1.0"; exit 0;; esac
echo "$*" >> {log}
{slow}
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo made > "$2"; shift; done
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ULSAM_FUSED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiler(folder: Path, script: str = LIBRARY, slow: str = "") -> str:
    """A pretended compiler, which writes every file that it is asked for."""
    path = folder / "compiler"
    path.write_text(script.replace("{log}", str(folder / "log")).replace("{slow}", slow))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CXX", compiler(tmp_path))
    build._identity.cache_clear()
    return tmp_path / "log"


def test_made_once_and_whole(cache: Path, pretended: Path) -> None:
    library = build.build()
    assert library.read_text() == "made\n"
    assert list(cache.iterdir()) == [library], "nothing but the library stays"
    commands = len(pretended.read_text().splitlines())
    assert commands == len(list(build.FOLDER.glob("*.cpp"))) + 1
    assert build.build() == library
    assert len(pretended.read_text().splitlines()) == commands


def test_into_a_folder(cache: Path, pretended: Path, tmp_path: Path) -> None:
    library = build.build(tmp_path / "image")
    assert library.parent == tmp_path / "image"
    assert not cache.exists()


def test_the_key_knows_what_decides(
    cache: Path, pretended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {build.build()}

    def another(name: str, value: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(build, name, value)
            library = build.build()
            assert library not in seen, name
            seen.add(library)

    another("FLAGS", (*build.FLAGS, "-O1"))
    another("_cpu", lambda: "a CPU without AVX2")
    another("_abi", lambda: "another ABI")
    sources = shutil.copytree(build.FOLDER, tmp_path / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "vectors.h").write_text((sources / "vectors.h").read_text() + "\n")
    another("FOLDER", sources)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.99.0")
        assert build.build() not in seen
    script = Path(os.environ["CXX"])
    script.write_text(script.read_text().replace("pretended 1.0", "pretended 1.1"))
    build._identity.cache_clear()
    assert build.build() not in seen


def building() -> int:
    """A forked process that builds, and exits with 0 where it has the library; its id, and its group's."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            status = 0 if build.build().read_text() == "made\n" else 2
        finally:
            os._exit(status)
    return child


FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@FORKS
def test_two_processes_at_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, slow="sleep 1"))
    build._identity.cache_clear()
    children = [building() for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert len(list(cache.iterdir())) == 1


@FORKS
def test_a_killed_build_is_in_nobodys_way(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, slow="sleep 30"))
    build._identity.cache_clear()
    child = building()
    until = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not list(cache.glob("ulsam_fused_cpu-*"))
    (left,) = cache.iterdir()
    os.utime(left, (0, 0))
    monkeypatch.setenv("CXX", compiler(tmp_path))
    build._identity.cache_clear()
    library = build.build()
    assert library.read_text() == "made\n"
    assert list(cache.iterdir()) == [library], "what is old is swept away"


# --- what is said ---------------------------------------------------------------------------------------------------


def told() -> str:
    build._identity.cache_clear()
    problem = build._load()
    assert problem is not None
    return problem


def test_no_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert told() == "there is no C++ compiler: install one (Debian and Ubuntu: apt install g++) or name one in CXX"
    monkeypatch.setenv("CXX", "clang++-99 -v")
    assert "CXX names, clang++-99, is not there" in told()
    assert not cache.exists()


def test_a_failing_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = '#!/bin/sh\ncase "$*" in *--version*) exit 0;; esac\necho "x.h:3:1: error: no such thing" >&2\nexit 1\n'
    monkeypatch.setenv("CXX", compiler(tmp_path, fails))
    assert "fails (x.h:3:1: error: no such thing): install g++" in told()
    assert not list(cache.iterdir()), "nothing half made"
    monkeypatch.setenv("CXX", compiler(tmp_path, "#!/bin/sh\necho broken\nexit 1\n"))
    assert "does not run (broken): name another in CXX" in told()


def test_a_cache_that_cannot_be_written(tmp_path: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ULSAM_FUSED_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be written to" in told()
    assert "ULSAM_FUSED_CACHE" in told()


def test_a_full_disk(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretended: Path) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left on device" in told()
    assert not list(cache.iterdir())


def test_a_library_that_does_not_load(cache: Path, pretended: Path) -> None:
    assert "cannot be loaded" in told()


def test_windows(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(build.BuildError, match="not built on Windows"):
        build.build()
    assert build._load() == "the C++ kernels are not built on Windows"


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_one_library_serves_several_pytorches() -> None:
    """Of PyTorch it needs C functions only, which later releases keep; `make matrix` loads it there."""
    library = build.build()
    wanted = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in wanted.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if "c10" in name or "2at" in name or "5torch" in name] == []


def test_an_old_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert told() == "PyTorch 2.9.1+cpu is older than 2.10, which the C++ kernels need: update it"


def test_the_answer_is_kept_and_asked_for_by_name_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from ulsam_fused.kernels.cpu import backend

    monkeypatch.setattr(build, "_loaded", ["no compiler"])
    monkeypatch.setattr(backend, "_operators", {})
    assert build.problem() == "no compiler"
    with pytest.raises(RuntimeError, match="no compiler"):
        backend.operator("forward")


@pytest.mark.slow  # a process that imports PyTorch
def test_importing_builds_nothing(cache: Path) -> None:
    code = "import ulsam_fused.kernels.cpu.backend, ulsam_fused.kernels.cpu.norm_backend"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "CXX": "/nowhere"})
    assert not cache.exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ULSAM_FUSED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build._cache_folder() == tmp_path / "ulsam_fused"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build._cache_folder() == tmp_path / "home" / ".cache" / "ulsam_fused"
