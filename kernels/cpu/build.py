"""Compiles the C++ sources of this folder on first use, into a cache of the user's, and loads the library.

The library's name holds a key of everything that decides what is compiled and where it may run: sources, flags,
compiler, PyTorch's build, the CPU's capabilities. It is compiled under a name of its own and renamed, which replaces
nothing or an equal file: a build that is killed, two at once, or a full disk leave nothing half made, and nobody waits
for anybody. `ULSAM_FUSED_CACHE` names another folder; `CXX` another compiler.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
OLDEST = (2, 10)
"""The oldest PyTorch whose stable interface has what the sources use."""

FLAGS = (
    "-std=c++17",
    "-O2",
    "-march=native",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
    "-Wno-psabi",
    f"-DTORCH_TARGET_VERSION=0x{OLDEST[0]:02x}{OLDEST[1]:02x}000000000000",
)

_lock = threading.Lock()
_loaded: list[str | None] = []  # problem or None, once it is known


class BuildError(RuntimeError):
    """The library cannot be had; the message says why and what to do."""


def problem() -> str | None:
    """Why the C++ kernels cannot be had here, with the remedy; None where they can, after which they are loaded.

    The first call compiles if need be, in seconds; the answer is kept.
    """
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(_load())
    return _loaded[0]


def build(into: Path | str | None = None) -> Path:
    """The compiled library, made now unless it is there: in `into`, or in the cache.

    Raises:
        BuildError: there is no compiler, it fails, or the folder cannot be written.
    """
    if sys.platform == "win32":
        raise BuildError("the C++ kernels are not built on Windows")
    compiler = _compiler()
    folder = _cache_folder() if into is None else Path(into)
    library = folder / f"ulsam_fused_cpu-{_key(compiler)}{'.dylib' if sys.platform == 'darwin' else '.so'}"
    if not library.exists():
        _compile(compiler, library)
    return library


def _load() -> str | None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST:
        return (
            f"PyTorch {torch.__version__} is older than {OLDEST[0]}.{OLDEST[1]}, which the C++ kernels need: update it"
        )
    try:
        library = build()
    except BuildError as error:
        return str(error)
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"the compiled library {library} cannot be loaded ({error.__cause__ or error}): delete it to build anew"
    return None


def _cache_folder() -> Path:
    if folder := os.environ.get("ULSAM_FUSED_CACHE"):
        return Path(folder)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home directory
        base = Path(tempfile.gettempdir()) / f"ulsam_fused-{os.getuid()}"
    return Path(base) / "ulsam_fused"


def _compiler() -> list[str]:
    """The command of a C++ compiler."""
    if named := os.environ.get("CXX"):
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise BuildError(f"the compiler that CXX names, {command[0]}, is not there: unset CXX or correct it")
        return command
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("there is no C++ compiler: install one (Debian and Ubuntu: apt install g++) or name one in CXX")


def _sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cpp"))


def _key(compiler: list[str]) -> str:
    """A name for what is compiled: equal keys, equal machine code that this machine can run."""
    digest = hashlib.sha256()
    for path in (*sorted(FOLDER.glob("*.h")), *_sources()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    described = (*compiler, _identity(tuple(compiler)), *FLAGS, torch.__version__, _abi(), _cpu())
    digest.update("\0".join(described).encode())
    return digest.hexdigest()[:24]


@functools.cache
def _identity(compiler: tuple[str, ...]) -> str:
    """The compiler's version, and the file it is."""
    path = os.path.realpath(shutil.which(compiler[0]) or compiler[0])
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the C++ compiler {compiler[0]} does not run ({error}): name another in CXX") from error
    if done.returncode:
        raise BuildError(f"the C++ compiler {compiler[0]} does not run ({_last_line(done)}): name another in CXX")
    return f"{path} {done.stdout}"


def _abi() -> str:
    return f"cxx11={torch.compiled_with_cxx11_abi()} git={torch.version.git_version}"


@functools.cache
def _cpu() -> str:
    """What decides which instructions -march=native takes, and for which CPU it orders them."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
    except OSError:
        if sys.platform == "darwin":
            brand = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
            found["brand"] = brand.stdout.strip()
    return f"{platform.system()} {platform.machine()} {sorted(found.items())}"


def _compile(compiler: list[str], library: Path) -> None:
    package = Path(torch.__file__).parent
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        _sweep(library.parent)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as scratch:
            objects = [Path(scratch) / f"{source.stem}.o" for source in _sources()]
            _run_all(
                [
                    [*compiler, *FLAGS, "-isystem", str(package / "include"), "-c", str(source), "-o", str(made)]
                    for source, made in zip(_sources(), objects, strict=True)
                ]
            )
            made = Path(scratch) / library.name
            libraries = ["-ltorch_cpu", "-ltorch", "-lc10"]
            shared = [*compiler, "-shared", *map(str, objects), "-o", str(made), f"-L{package / 'lib'}", *libraries]
            _run_all([shared])
            made.replace(library)
    except OSError as error:
        raise BuildError(
            f"the C++ kernels cannot be written to {library.parent} ({error.strerror or error}): "
            "name a folder with room for a megabyte in ULSAM_FUSED_CACHE"
        ) from error


def _sweep(folder: Path) -> None:
    """Remove what builds that were killed more than an hour ago have left."""
    for left in folder.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)


def _run_all(commands: list[list[str]]) -> None:
    """All at once; the compiler's complaint about the first that fails."""
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    try:
        outputs = [process.communicate()[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for command, process, output in zip(commands, running, outputs, strict=True):
        if process.returncode:
            complaint = next((line for line in output.splitlines() if "error" in line.lower()), output.strip()[-300:])
            raise BuildError(
                f"the C++ compiler {command[0]} fails ({complaint.strip()}): "
                "install g++ 11 or newer, or name another compiler in CXX"
            )


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
