"""Images per second of a whole backbone without ULSAM, with it in eager PyTorch, and with it fused."""

import argparse
import copy
from dataclasses import dataclass
from itertools import groupby
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..console import model_options
from ..console.output import note
from ..console.tables import aligned
from ..conversion import fuse as conversion
from ..modules import ULSAM
from . import report, timing
from .accuracy import complaint, measure
from .cases import LAYOUTS
from .rows import Heading

DEFAULT_PLACES = {"mobilenet_v1": ["11=4"], "mobilenet_v2": ["17=4"]}
"""Where the paper inserts a ULSAM that keeps the cost."""

DEFAULT_BATCH = {"cuda": 256, "cpu": 8}
DIRECTIONS = {"forward": "inference", "forward+backward": "training step"}
ROUNDING = 1e-6  # in float64, of what ULSAM adds to the features


@dataclass(frozen=True)
class NetworkWorkload:
    """Batches of one size in one direction, type and memory format."""

    direction: str
    dtype: torch.dtype
    layout: str
    batch: int
    side: int
    device: torch.device


class NetworkRow(TypedDict):
    """A model at one workload."""

    direction: str
    dtype: str
    layout: str
    batch: int
    provider: str
    images_per_s: float
    us_p50: float
    us_p20: float
    us_p80: float
    speedup_vs_eager: float


class NetworkResult(Heading):
    model: str
    size: int
    rows: list[NetworkRow]


def models(args: argparse.Namespace, backends: list[str], device: torch.device) -> dict[str, nn.Module]:
    """The backbone without ULSAM, with it in eager PyTorch, and fused; all with the same weights."""
    torch.manual_seed(0)
    fused = model_options.build(args).to(device)
    plain = argparse.Namespace(**{**vars(args), "insert": None, "replace": None})
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {"vanilla": model_options.build(plain).to(device)}
    eager: nn.Module = copy.deepcopy(fused)
    if args.attention == "upstream":
        eager = conversion.unfuse(eager)
    else:
        _choose(eager, "reference")
    found["eager"] = eager
    for backend in backends:
        found[f"fused[{backend}]"] = _choose(copy.deepcopy(fused), backend)
    return found


def problem_with(found: dict[str, nn.Module], side: int) -> str | None:
    """The first fused model that differs from eager in what ULSAM adds to the features; in float64, training mode."""
    device = next(found["eager"].parameters()).device
    x = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    blind = _features(_without(found["eager"]), x)
    golden = {"what ULSAM adds": _features(found["eager"], x) - blind}
    for name, model in found.items():
        if name.startswith("fused"):
            ours = {"what ULSAM adds": _features(model, x) - blind}
            problem = complaint(measure(ours, golden, golden, dict.fromkeys(golden, ROUNDING)))
            if problem is not None:
                return f"{name}: {problem}"
    return None


def _features(model: nn.Module, x: Tensor) -> Tensor:
    """The features before the classifier, whose dropout draws random numbers."""
    model = copy.deepcopy(model).double().train()
    with torch.no_grad():
        features: Tensor = model.get_submodule("features")(x)
    return features


def _without(eager: nn.Module) -> nn.Module:
    """The eager model with every ULSAM taken out."""
    model = copy.deepcopy(eager)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("ULSAM", "SubSpace"):
                setattr(parent, name, nn.Identity())
    return model


def _choose(model: nn.Module, backend: str) -> nn.Module:
    for module in model.modules():
        if isinstance(module, ULSAM):
            module.backend = backend
    return model


def rows_of(found: dict[str, nn.Module], workload: NetworkWorkload, seconds: float, compiled: bool) -> list[NetworkRow]:
    """A row for each model, and for each under torch.compile where `compiled`."""
    side, device, layout = workload.side, workload.device, LAYOUTS[workload.layout]
    x = torch.randn(workload.batch, 3, side, side, device=device).contiguous(memory_format=layout)
    labels = torch.arange(workload.batch, device=device) % 1000
    calls = {}
    for name, source in found.items():
        for compiles in (False, True) if compiled else (False,):
            model = copy.deepcopy(source).train(workload.direction != "forward")
            model.to(memory_format=layout)  # type: ignore[call-overload]
            if compiles:
                model.compile(dynamic=False)
            calls[name + ("+compile" if compiles else "")] = _call(model, x, labels, workload)
    note(f"{DIRECTIONS[workload.direction]}, {workload.layout}: timing {len(calls)} models in turn")
    timings = timing.wall_clock(calls, seconds)
    return [
        {
            "direction": workload.direction,
            "dtype": str(workload.dtype).removeprefix("torch."),
            "layout": workload.layout,
            "batch": workload.batch,
            "provider": name,
            "images_per_s": round(workload.batch / t.p50 * 1e6, 2),
            "us_p50": round(t.p50, 2),
            "us_p20": round(t.p20, 2),
            "us_p80": round(t.p80, 2),
            "speedup_vs_eager": round(timings["eager"].p50 / t.p50, 3),
        }
        for name, t in timings.items()
    ]


def _call(model: nn.Module, x: Tensor, labels: Tensor, workload: NetworkWorkload) -> timing.Call:
    """One batch, until the device has finished with it; 16 bits by autocast."""
    device, dtype = workload.device.type, workload.dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def forward() -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits: Tensor = model(x)
        return logits

    def call(_: int) -> None:
        if workload.direction == "forward":
            with torch.no_grad():
                forward()
        else:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(forward().float(), labels).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def table(result: NetworkResult, verbose: bool) -> str:
    """A block for each workload; percentiles and notes where verbose."""
    lines = [*report.heading_lines(result), f"{result['model']}; input 3x{result['size']}x{result['size']}"]
    for at, rows in groupby(
        result["rows"],
        key=lambda row: f"{DIRECTIONS[row['direction']]}, batch {row['batch']}, {row['dtype']}, {row['layout']}",
    ):
        cells = [["model", "images/s", "ms", *(["p20", "p80"] if verbose else []), "vs eager"]]
        for row in rows:
            times = [row["us_p50"], *([row["us_p20"], row["us_p80"]] if verbose else [])]
            cells.append([row["provider"], f"{row['images_per_s']:.1f}", *(f"{us / 1000:.1f}" for us in times)])
            cells[-1].append(f"{row['speedup_vs_eager']:.2f}x")
        lines += ["", at, *aligned(cells, left=1)]
    lines += ["", "vanilla: without ULSAM. eager: with ULSAM in eager PyTorch. More: --verbose."] * (not verbose)
    return "\n".join([*lines, *([_NOTES] if verbose else [])])


_NOTES = """
vanilla: without ULSAM. eager: with ULSAM in eager PyTorch, the paper's formula subspace by subspace, or with
  --attention upstream the authors' layers. Times are wall clock, in turn; each batch is waited for.
training step: forward, cross-entropy, backward and SGD, in training mode. 16 bits by autocast."""
