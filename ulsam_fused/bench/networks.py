"""`ulsam-fused bench --model`: images per second of a whole backbone, with and without ULSAM."""

import argparse
import contextlib
import copy
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..bench import report, timing
from ..bench.cases import LAYOUTS
from ..bench.timing import Timing
from ..console import devices
from ..console import model_options as backbone
from ..console.errors import UserError
from ..conversion import fuse as conversion
from ..modules import ULSAM

DEFAULT = {"mobilenet_v1": ["11=4"], "mobilenet_v2": ["17=4"]}
"""Where the paper inserts a ULSAM that keeps the cost."""

BATCH = {"cuda": 256, "cpu": 8}
DIRECTIONS = {"forward": "inference", "step": "training step"}
EXACT = 1e-6


def run(args: argparse.Namespace) -> int:
    device = devices.pick(args.device)
    if args.insert is None and args.replace is None:
        args.insert = DEFAULT[args.model]
    batch = BATCH[device.type] if args.batch is None else args.batch
    side = 224 if args.size is None else args.size
    if batch < 1 or not 32 <= side <= 1024:
        raise UserError("--batch must be at least 1, and --size from 32 to 1024")
    backends = devices.fused_backends(args.backend, device)
    if not args.backend:
        backends = [name for name in backends if not devices.interpreted(name, device)]
    dtype = devices.DTYPES[args.dtype or ("float16" if device.type == "cuda" else "float32")]
    layouts = list(LAYOUTS) if args.layout == "both" else [args.layout]
    directions = list(DIRECTIONS) if args.direction in ("both", "all") else [args.direction]
    if not set(directions) <= set(DIRECTIONS):
        raise UserError(f"--model measures {' and '.join(DIRECTIONS)}, not {args.direction}")
    seconds = args.seconds if args.seconds is not None else (1.0 if args.quick else 5.0)
    rows = []
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        found = models(args, backends, device)
        for name, problem in wrong(found, side).items():
            report.progress(f"{name}: {problem}")
            raise UserError(f"{name} {problem}; nothing was timed")
        for layout in layouts:
            for direction in directions:
                rows += _rows(found, direction, layout, dtype, (batch, side), device, seconds, args.compile)
    result = {**report.heading(device), "model": backbone.describe(args), "size": side, "rows": rows}
    print(_table(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {args.json}")
    return 0


def models(args: argparse.Namespace, backends: list[str], device: torch.device) -> dict[str, nn.Module]:
    """The backbone without ULSAM, with it in eager PyTorch, and fused; the last two with the same weights."""
    torch.manual_seed(0)
    fused = backbone.build(args).to(device)
    plain = argparse.Namespace(**{**vars(args), "insert": None, "replace": None})
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {"vanilla": backbone.build(plain).to(device)}
    eager: nn.Module = copy.deepcopy(fused)
    if args.attention == "upstream":
        eager = conversion.unfuse(eager)
    else:
        _choose(eager, "reference")
    found["eager"] = eager
    for backend in backends:
        found[f"fused[{backend}]"] = _choose(copy.deepcopy(fused), backend)
    return found


def wrong(found: dict[str, nn.Module], side: int) -> dict[str, str]:
    """What differs from eager in float64, training mode: the part of the output that ULSAM makes, relatively."""
    device = next(found["eager"].parameters()).device
    x = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    outputs = {name: _features(model, x) for name, model in found.items()}
    blind = _features(_without(found["eager"]), x)
    effect = (outputs["eager"] - blind).norm()
    problems = {}
    for name in outputs:
        error = float((outputs[name] - outputs["eager"]).norm() / effect) if name.startswith("fused") else 0.0
        if not error <= EXACT:
            problems[name] = f"is off by {error:.1e} of what ULSAM adds"
    return problems


def _features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The features before the classifier, whose dropout draws random numbers."""
    model = copy.deepcopy(model).double().train()
    with torch.no_grad():
        features: torch.Tensor = model.get_submodule("features")(x)
    return features


class _Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _without(eager: nn.Module) -> nn.Module:
    """The eager model with every ULSAM taken out."""
    model = copy.deepcopy(eager)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("ULSAM", "SubSpace"):
                setattr(parent, name, _Identity())
    return model


def _choose(model: nn.Module, backend: str) -> nn.Module:
    for module in model.modules():
        if isinstance(module, ULSAM):
            module.backend = backend
    return model


def _rows(
    found: dict[str, nn.Module],
    direction: str,
    layout: str,
    dtype: torch.dtype,
    shape: tuple[int, int],  # batch, side
    device: torch.device,
    seconds: float,
    compiled: bool,
) -> list[dict[str, Any]]:
    batch, side = shape
    x = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.arange(batch, device=device) % 1000
    calls = {}
    for name, source in found.items():
        for compiles in (False, True) if compiled else (False,):
            model = copy.deepcopy(source).train(direction == "step")
            model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
            if compiles:
                model.compile(dynamic=False)
            calls[name + ("+compile" if compiles else "")] = _call(model, x, labels, dtype, direction)
    report.progress(f"{DIRECTIONS[direction]}, {layout}: timing {len(calls)} models in turn")
    timings = timing.wall_clock(calls, seconds)
    eager = timings["eager"].p50
    return [_row(name, t, direction, layout, dtype, batch, eager) for name, t in timings.items()]


def _call(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype, direction: str) -> timing.Call:
    """One batch, until the device has finished with it; 16 bits by autocast."""
    device = x.device.type
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def forward() -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits: torch.Tensor = model(x)
        return logits

    def call(_: int) -> object:
        if direction == "step":
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(forward().float(), labels).backward()
            optimizer.step()
        else:
            with torch.no_grad():
                forward()
        if device == "cuda":
            torch.cuda.synchronize()
        return None

    return call


def _row(
    name: str, t: Timing, direction: str, layout: str, dtype: torch.dtype, batch: int, eager: float
) -> dict[str, Any]:
    return {
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
        "batch": batch,
        "provider": name,
        "images_per_s": round(batch / t.p50 * 1e6, 2),
        "us_p50": round(t.p50, 2),
        "us_p20": round(t.p20, 2),
        "us_p80": round(t.p80, 2),
        "speedup_vs_eager": round(eager / t.p50, 3),
    }


def _table(result: dict[str, Any]) -> str:
    lines = [report.heading_line(result), f"{result['model']}; input 3x{result['size']}x{result['size']}"]
    head = ""
    for row in result["rows"]:
        at = f"{DIRECTIONS[row['direction']]}, batch {row['batch']}, {row['dtype']}, {row['layout']}"
        if at != head:
            lines += ["", at, f"{'model':<24} {'images/s':>9} {'ms':>8} {'p20':>8} {'p80':>8} {'vs eager':>9}"]
            head = at
        ms = "".join(f" {row[key] / 1000:>8.1f}" for key in ("us_p50", "us_p20", "us_p80"))
        lines.append(f"{row['provider']:<24} {row['images_per_s']:>9.1f}{ms} {row['speedup_vs_eager']:>8.2f}x")
    return "\n".join(
        [
            *lines,
            "",
            "vanilla: without ULSAM. eager: ULSAM in eager PyTorch, the paper's formula subspace by subspace, or with",
            "  --attention upstream the authors' layers. Wall clock, in turn, each batch waited for. Training step:",
            "  forward, cross-entropy, backward and SGD, in training mode. 16 bits by autocast.",
        ]
    )
