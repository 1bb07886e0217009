"""`ulsam-fused info`: what this machine has, and which backend a call takes on it."""

import argparse
import importlib
import json
import os
import platform
import shutil
from typing import Any

import torch

from .. import backends
from .._names import BACKENDS
from .._version import __version__
from ..console import devices
from ..console.errors import UserError

VARIABLES = (
    backends.ENVIRONMENT, "TRITON_INTERPRET", "TRITON_CACHE_DIR", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    facts = gather()
    print(json.dumps(facts, indent=2) if args.json else _text(facts))
    return 0


def gather() -> dict[str, Any]:
    """All that `info` prints, ready for JSON."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = [torch.device("cuda", i) for i in range(gpus)] + [torch.device("cpu")]
    return {
        "ulsam_fused": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
        "triton": devices.triton_version(),
        "triton_problem": _triton_problem(),
        "c_compiler": _c_compiler(),
        "threads": torch.get_num_threads(),
        "devices": [_device(device) for device in here],
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _device(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": str(device), "name": devices.name_of(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["multiprocessors"] = properties.multi_processor_count
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
    chosen, why = _auto(device)
    facts["auto"] = {"backend": chosen, "why": why}
    facts["backends"] = {name: backends.why_not(name, device) or "yes" for name in BACKENDS if name != "auto"}
    return facts


def _auto(device: torch.device) -> tuple[str | None, str]:
    """What backend="auto" takes on this device, and why; no backend where the one asked for cannot serve."""
    try:
        asked = backends.get_backend()
    except ValueError as error:
        raise UserError(str(error)) from None
    if asked != "auto":
        why = f"asked for by {backends.ENVIRONMENT}"
        problem = backends.why_not(asked, device)
        return (asked, why) if problem is None else (None, f'"{asked}" is {why}, and cannot serve: {problem}')
    chosen = backends.resolve("auto", device)
    if device.type != "cuda":
        return chosen, backends.why_not_cpp(device) or "the rule for a tensor on a CPU"
    if chosen == "triton":
        return chosen, "the rule for a tensor on a GPU"
    return chosen, str(backends.triton_problem())


def _triton_problem() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return str(error)
    return None


def _c_compiler() -> str | None:
    """What Triton compiles its start of a kernel with; None where it finds nothing."""
    named = os.environ.get("CC")
    return next((path for name in ([named] if named else ["gcc", "clang"]) if (path := shutil.which(name))), None)


def _text(facts: dict[str, Any]) -> str:
    build = "built for CPU only"
    if facts["torch_cuda"] or facts["torch_hip"]:
        build = f"CUDA {facts['torch_cuda']}" if facts["torch_cuda"] else f"ROCm {facts['torch_hip']}"
    lines = [
        f"ulsam_fused  {facts['ulsam_fused']}",
        f"python       {facts['python']}, {facts['platform']}",
        f"torch        {facts['torch']} ({build})",
        f"triton       {facts['triton'] or 'not importable: ' + str(facts['triton_problem'])}",
        f"C compiler   {facts['c_compiler'] or 'none, which Triton needs on a GPU: install gcc, or name one in CC'}",
        f"threads      {facts['threads']}",
        "environment  " + (", ".join(f"{k}={v}" for k, v in facts["environment"].items()) or "nothing set"),
    ]
    if all(device["device"] == "cpu" for device in facts["devices"]):
        lines.append("gpu          none that PyTorch sees")
    for device in facts["devices"]:
        lines += ["", f"{device['device']}: {device['name']}"]
        if "multiprocessors" in device:
            lines.append(
                f"  {device['multiprocessors']} multiprocessors, compute capability {device['compute_capability']}, "
                f"{device['memory_gib']} GiB"
            )
        chosen = device["auto"]["backend"]
        lines.append(f'  backend "auto" takes {chosen if chosen else "nothing"}: {device["auto"]["why"]}')
        for name, answer in device["backends"].items():
            lines.append(f"    {name:<10} {answer if answer == 'yes' else 'no: ' + answer}")
    return "\n".join(lines)
