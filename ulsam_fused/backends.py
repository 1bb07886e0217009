"""Which backend serves a call: "triton", "cpp", "torch", "reference", or "auto" to choose by device.

A call's own argument wins over `set_backend`. That wins over the environment variable ULSAM_FUSED_BACKEND. That wins
over the rule for "auto": Triton for GPU tensors where Triton can be imported, C++ for CPU tensors where it can be
compiled, else PyTorch. A backend that was asked for by name and cannot serve raises. Where "auto" has to do without the
C++ kernels, a warning says why, once; nothing falls back in silence.
"""

import functools
import importlib
import os
import types
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch.autograd import profiler

from ._names import BACKENDS as BACKENDS
from .kernels.contract import Backend, NormBackend

ENVIRONMENT = "ULSAM_FUSED_BACKEND"
_FOLDERS = {
    "triton": ".kernels.gpu",
    "cpp": ".kernels.cpu",
    "torch": ".torch_backend",
}
"""Where the two doors of a backend are, in this package. A new backend is a folder, and a line here."""

_environment = os.environ.get(ENVIRONMENT) or "auto"  # read once, when the package is imported
_chosen = "auto"
_doors: dict[tuple[str, torch.device], Backend] = {}
_norm_doors: dict[tuple[str, torch.device], NormBackend] = {}


def set_backend(name: str) -> None:
    """Choose the backend that `backend="auto"` takes in this process; "auto" returns to the environment and the rule.

    Args:
        name: "auto", "triton", "cpp", "torch" or "reference".

    Raises:
        ValueError: the name is none of these.
    """
    global _chosen
    _chosen = check_backend(name)


def get_backend() -> str:
    """The name that `backend="auto"` stands for now: `set_backend`'s choice, else the environment's, else "auto"."""
    if _chosen != "auto":
        return _chosen
    return check_backend(_environment, f"the environment variable {ENVIRONMENT}")


def check_backend(name: object, what: str = "backend") -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name


def requested(backend: str) -> str:
    """The backend that a call's argument asks for, `set_backend` and the environment taken into account.

    Raises:
        ValueError: unknown name.
    """
    return get_backend() if backend == "auto" else check_backend(backend)


def resolve(backend: str, device: torch.device) -> str:
    """The backend that serves a call on this device: "triton", "cpp", "torch" or "reference".

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend that was asked for by name cannot serve this device; the message says why.
    """
    backend = requested(backend)
    if backend == "auto":
        return _automatic(device)
    problem = why_not(backend, device)
    if problem is not None:
        raise RuntimeError(f'backend "{backend}" cannot serve a tensor on {device}: {problem}')
    return backend


def _automatic(device: torch.device) -> str:
    if device.type == "cuda":
        return "triton" if triton_problem() is None else "torch"
    if device.type == "cpu":
        problem = why_not_cpp(device)
        if problem is None:
            return "cpp"
        _warn_once(problem)
    return "torch"


@functools.lru_cache(maxsize=1)
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"ulsam_fused computes in PyTorch on the CPU, which is slower than its C++ kernels: {problem}", stacklevel=2
    )


def door(backend: str, device: torch.device) -> Backend:
    """The module that serves the general form; backend as `requested` gives it. Raises as `resolve`."""
    key = (backend, device)
    found = _doors.get(key)
    if found is None:
        found = _doors[key] = cast(Backend, _module(resolve(backend, device), "backend"))
    return cast(Backend, _Recorded(found, resolve(backend, device))) if profiler._is_profiler_enabled else found


def norm_door(backend: str, device: torch.device) -> NormBackend:
    """The module that serves the form with norms; as `door`."""
    key = (backend, device)
    found = _norm_doors.get(key)
    if found is None:
        found = _norm_doors[key] = cast(NormBackend, _module(resolve(backend, device), "norm_backend"))
    return cast(NormBackend, _Recorded(found, resolve(backend, device))) if profiler._is_profiler_enabled else found


class _Recorded:
    """A door whose calls are ranges in a profiler: `ulsam_fused::cpp::forward` and so on."""

    def __init__(self, door: object, name: str) -> None:
        self._door, self._name = door, name

    def __getattr__(self, function: str) -> Callable[..., object]:
        def recorded(*arguments: object, **options: object) -> object:
            with profiler.record_function(f"ulsam_fused::{self._name}::{function}"):
                return getattr(self._door, function)(*arguments, **options)

        return recorded


def why_not(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot serve tensors on this device; None where it can. Asked of "cpp", it compiles the kernels."""
    if backend == "triton":
        return why_not_triton(device)
    if backend == "cpp":
        return why_not_cpp(device)
    return None


def why_not_cpp(device: torch.device) -> str | None:
    """Why the C++ backend cannot serve tensors on this device; the first call compiles it, in seconds."""
    if device.type != "cpu":
        return f"C++ kernels run on a CPU, not on {device.type}"
    try:
        problem: str | None = _module("cpp", "build").problem()
    except ModuleNotFoundError:  # tools/hub.py leaves them out
        return "this copy of ulsam_fused has no C++ sources; pip install ulsam_fused has them"
    return problem


def why_not_triton(device: torch.device) -> str | None:
    """Why the Triton backend cannot serve tensors on this device; None where it can."""
    problem = triton_problem()
    if problem is not None:
        return problem
    if device.type == "cuda":
        return None
    if device.type == "cpu":
        if interpreting():
            return None
        return "a CPU tensor needs Triton's interpreter: set TRITON_INTERPRET=1 before Python starts"
    return f"Triton kernels run on NVIDIA and AMD GPUs, not on {device.type}"


@functools.lru_cache(maxsize=1)
def triton_problem() -> str | None:
    """Why the kernels cannot be imported in this process; None where they can."""
    try:
        _module("triton", "backend")
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install triton"
    return None


@functools.lru_cache(maxsize=1)
def interpreting() -> bool:
    """Whether the kernels were imported under TRITON_INTERPRET=1."""
    return bool(_module("triton", "backend").INTERPRETED)


def _module(backend: str, name: str) -> types.ModuleType:
    """A file in the folder of a backend."""
    return importlib.import_module(f"{_FOLDERS[backend]}.{name}", __package__)
