"""Which implementation serves a call: "triton", "torch", "reference", or "auto" to choose by device.

A call's own argument wins over `set_backend`, which wins over the environment variable ULSAM_FUSED_BACKEND, which wins
over the rule for "auto": Triton for GPU tensors where Triton can be imported, else PyTorch. A backend that was asked
for by name and cannot serve raises; nothing falls back in silence.
"""

import functools
import importlib
import os

import torch

BACKENDS = ("auto", "triton", "torch", "reference")
ENVIRONMENT = "ULSAM_FUSED_BACKEND"

_environment = os.environ.get(ENVIRONMENT) or "auto"  # read once, when the package is imported
_chosen = "auto"


def set_backend(name: str) -> None:
    """Choose the backend that `backend="auto"` takes in this process; "auto" returns to the environment and the rule.

    Args:
        name: "auto", "triton", "torch" or "reference".

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
    return get_backend() if check_backend(backend) == "auto" else backend


def resolve(backend: str, device: torch.device) -> str:
    """The backend that serves a call on this device: "triton", "torch" or "reference".

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend that was asked for by name cannot serve this device; the message says why.
    """
    return serving(requested(backend), device)


def serving(backend: str, device: torch.device) -> str:
    """As `resolve`, for a name that `requested` gave."""
    if backend == "auto":
        return "triton" if device.type == "cuda" and triton_problem() is None else "torch"
    if backend == "triton":
        problem = why_not_triton(device)
        if problem is not None:
            raise RuntimeError(f'backend "triton" cannot serve a tensor on {device}: {problem}')
    return backend


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
        importlib.import_module("ulsam_fused.kernels.gpu.backend")
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install triton"
    return None


@functools.lru_cache(maxsize=1)
def interpreting() -> bool:
    """Whether the kernels were imported under TRITON_INTERPRET=1."""
    return bool(importlib.import_module("ulsam_fused.kernels.gpu.backend").INTERPRETED)
