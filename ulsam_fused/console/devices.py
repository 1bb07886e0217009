"""Where a command runs, and which backends can serve there."""

import pathlib
import platform

import torch

from .. import _names, backends
from .._names import FUSED as FUSED
from .errors import UserError

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _names.DTYPES}


def pick(name: str | None) -> torch.device:
    """The device of that name, or the best one here.

    Raises:
        UserError: no such device on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"--device {name}: PyTorch {torch.__version__} sees no GPU on this machine")
        if device.index is not None and device.index >= count:
            raise UserError(f"--device {name}: this machine has {count} GPU(s), cuda:0 to cuda:{count - 1}")
    return device


def fused_backends(asked: list[str] | None, device: torch.device) -> list[str]:
    """The backends asked for, or every fused one that serves this device.

    Raises:
        UserError: a backend that was asked for cannot serve.
    """
    for name in asked or ():
        problem = backends.why_not(name, device)
        if problem is not None:
            raise UserError(f"--backend {name} cannot serve tensors on {device}: {problem}")
    return list(dict.fromkeys(asked)) if asked else [name for name in FUSED if backends.why_not(name, device) is None]


def interpreted(backend: str, device: torch.device) -> bool:
    """Whether the backend would run by Triton's interpreter, which is right and very slow."""
    return (
        backend == "triton" and device.type == "cpu" and backends.triton_problem() is None and backends.interpreting()
    )


def name_of(device: torch.device) -> str:
    """The hardware's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """One line for the head of a report."""
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    return f"{device} ({name_of(device)}{threads}), torch {torch.__version__}, triton {triton_version() or 'none'}"


def triton_version() -> str | None:
    """The version of Triton that can be imported here; None where there is none."""
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
