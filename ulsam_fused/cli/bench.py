"""`ulsam-fused bench`: times of the layer, fused and not, at the places where the paper puts it."""

import argparse
import contextlib
import itertools
import json
import pathlib
import re
from typing import Any

import torch
from torch import nn

from ..bench import calls, plot, report, timing
from ..bench import networks as bench_model
from ..bench.cases import LAYOUTS
from ..bench.directions import CHOICES, DIRECTIONS, NAMED
from ..bench.module_accuracy import Yardstick
from ..bench.providers import Provider, Sources, providers
from ..bench.timing import Timing
from ..bench.workload import Setting
from ..console import devices
from ..console import model_options as backbone
from ..console.errors import UserError, check_output

GPU_CASES = (
    "64x512x14x14/g4",
    "64x1024x7x7/g4",
    "64x160x7x7/g8",
    "64x256x28x28/g4",
    "16x32x112x112/g1",
    "16x32x112x112/g4",
)
CPU_CASES = ("8x512x14x14/g4", "8x1024x7x7/g4", "8x160x7x7/g4", "8x256x28x28/g4", "4x32x112x112/g4")
QUICK = slice(0, 3, 2)  # two of either

_DESCRIPTION = """\
Times the layer as the authors wrote it (eager), the paper's formula in plain PyTorch, and the fused operator, at the
places where the paper puts it. Every provider is first compared with float64: one that is wrong gets no time.
Directions: "forward" is inference without gradients; "forward+backward" (or "step") has gradients of x and all
parameters, and "backward" is the second half of that alone; "train-norm" is forward and backward of the authors' form,
fused or not, with the batch's statistics. "both" is inference and training: all of these but "backward" alone.
"""
_EPILOG = """\
examples:
  ulsam-fused bench --quick
  ulsam-fused bench --case 8x512x14x14/g4 --direction forward --layout both
  ulsam-fused bench --case upstream-eval --case upstream-train
  ulsam-fused bench --model mobilenet_v2 --insert 17=4        images per second of the whole network
  ulsam-fused bench --compile --dtype float16 --json result.json --plot result.png

upstream-eval and upstream-train compare the authors' module, with its norms, in eager mode, under torch.compile and
fused: forward in eval mode, and train-norm.

Triton's interpreter is never timed unless --backend triton asks for it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "--case",
        action="append",
        metavar="NxCxHxW/gK",
        help="this size instead, or upstream-eval or upstream-train; repeatable",
    )
    parser.add_argument(
        "--dtype", choices=devices.DTYPES, help="of everything (default: float16 on a GPU, else float32)"
    )
    parser.add_argument(
        "--layout", choices=[*LAYOUTS, "both"], default="nchw", help="memory format of x (default: nchw)"
    )
    parser.add_argument("--direction", choices=CHOICES, default="both", help="default: both, inference and training")
    parser.add_argument("--provider", action="append", metavar="NAME", help="only this line of the table; repeatable")
    parser.add_argument("--backend", action="append", choices=devices.FUSED, help="only this fused one; repeatable")
    devices.add_device_argument(parser)
    parser.add_argument("--compile", action="store_true", help="add torch.compile of eager and of the vectorised form")
    parser.add_argument("--quick", action="store_true", help="two sizes, short measurements")
    parser.add_argument("--seconds", type=float, metavar="S", help="per measurement (default: 1, or 0.3 with --quick)")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write all rows to this file")
    parser.add_argument("--plot", metavar="FILE.png", type=pathlib.Path, help="draw them; needs the extra [plot]")
    group = backbone.add_arguments(parser)
    group.add_argument("--batch", type=int, metavar="N", help="images (default: 256 on a GPU, 8 on a CPU)")
    group.add_argument("--size", type=int, metavar="PX", help="side of the input (default: 224)")


def run(args: argparse.Namespace) -> int:
    backbone.check(args, "batch", "size")
    if args.model is not None:
        if args.case or args.plot:
            raise UserError("--model does not go with --case or --plot")
        if args.json is not None:
            check_output(args.json)
        return bench_model.run(args)
    device = devices.pick(args.device)
    backends = devices.fused_backends(args.backend, device)
    if not args.backend:
        backends = [name for name in backends if not devices.interpreted(name, device)]
    outputs = [path for path in (args.json, args.plot) if path is not None]
    for path in outputs:
        check_output(path)
    if args.plot is not None:
        plot.require(args.plot)
    settings = _settings(args, device)
    seconds = args.seconds if args.seconds is not None else (0.3 if args.quick else 1.0)
    if not seconds > 0:
        raise UserError(f"--seconds must be above 0, got {seconds}")
    found = _providers(args, backends, settings)
    head = report.heading(device)
    rows: list[dict[str, Any]] = []
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for setting in settings:
            wanted = [p for p in found if args.compile or args.provider or setting.form or not p.compiled]
            taking_part = [p for p in wanted if setting.form in (None, p.form) and p.takes_part(setting.direction)]
            rows += _rows(setting, taking_part, seconds)
            if args.json is not None:  # as rows come, so that a run that is stopped has not run for nothing
                _write(args.json, {**head, "rows": rows})
    result = {**head, "rows": rows}
    print(report.table(result, found))
    if args.plot is not None:
        plot.bars(result, args.plot)
    for path in outputs:
        print(f"written: {path}")
    return 1 if any(row["error"] for row in rows) else 0


def _providers(args: argparse.Namespace, backends: list[str], settings: list[Setting]) -> list[Provider]:
    names = args.provider or ()
    compiled = args.compile or any(setting.form for setting in settings) or any("+compile" in name for name in names)
    found = providers(backends, compiled)
    for name in names:
        if name not in [p.name for p in found]:
            raise UserError(f"--provider must be one of {', '.join(p.name for p in found)}, got {name!r}")
    return [p for p in found if not names or p.name in names]


def _write(path: pathlib.Path, result: dict[str, Any]) -> None:
    """The file is at no time half written."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def _settings(args: argparse.Namespace, device: torch.device) -> list[Setting]:
    sizes = (GPU_CASES if device.type == "cuda" else CPU_CASES)[QUICK if args.quick else slice(None)]
    dtype = args.dtype or ("float16" if device.type == "cuda" else "float32")
    layouts = list(LAYOUTS) if args.layout == "both" else [args.layout]
    settings = []
    for case in args.case or sizes:
        if case in NAMED:
            for size, layout in itertools.product(sizes, layouts):
                settings.append(Setting(size, NAMED[case], dtype, layout, device, form="upstream"))
        else:
            check_case(case)
            for layout, direction in itertools.product(layouts, CHOICES[args.direction]):
                settings.append(Setting(case, direction, dtype, layout, device))
    return settings


def check_case(case: str) -> None:
    """Raises UserError unless the text is NxCxHxW/gK of positive numbers with K dividing C."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)x([1-9]\d*)/g([1-9]\d*)", case)
    if match is None:
        names = " or ".join(NAMED)
        raise UserError(f"--case must look like 8x512x14x14/g4 (N x C x H x W / subspaces) or be {names}, got {case!r}")
    channels, g = int(match[2]), int(match[5])
    if channels % g:
        raise UserError(f"--case {case}: {channels} channels cannot be cut into {g} equal subspaces")


def _rows(setting: Setting, found: list[Provider], seconds: float) -> list[dict[str, Any]]:
    """One row for the ceiling and one for each provider; progress on standard error."""
    torch.manual_seed(1)
    ((x, dy),) = calls.inputs(setting, 1)
    if any(provider.compiled for provider in found):
        torch.compiler.reset()  # else the code of the last size is reused by making its shapes dynamic
    sources = Sources.make(x, setting.shape[4], training=setting.training)
    modules: dict[str, nn.Module] = {}
    errors: dict[str, str] = {}
    yardsticks: dict[str, Yardstick] = {}
    for provider in found:
        report.progress(f"{setting} {provider.name}: comparing with float64")
        try:
            if provider.form not in yardsticks:
                source = sources.paper if provider.form == "paper" else sources.upstream
                yardsticks[provider.form] = Yardstick.make(source, x, dy)
            module = provider.build(sources)
            problem = yardsticks[provider.form].verdict(module, provider.compiled)
        except Exception as error:  # whatever a provider does wrong belongs into its row, and the others go on
            problem = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if problem is None:
            modules[provider.name] = module
        else:
            errors[provider.name] = problem
            report.progress(f"{setting} {provider.name}: {problem}")
    del yardsticks
    timings, extras = _measure(setting, modules, seconds)
    ceiling = report.row(setting, None, timings, None, extras)
    return [ceiling, *(report.row(setting, p, timings, errors.get(p.name), extras) for p in found)]


def _measure(
    setting: Setting, modules: dict[str, nn.Module], seconds: float
) -> tuple[dict[str, Timing], dict[str, dict[str, float]]]:
    """Times by provider, the ceiling's among them, and on a GPU host time and memory by provider."""
    sets = timing.sets_needed(setting.floor, setting.device)
    inputs = calls.inputs(setting, sets)
    name_of_ceiling = DIRECTIONS[setting.direction].ceiling
    ceiling = calls.ceiling(inputs, setting.direction)
    if setting.device.type == "cpu":
        timed = {name: calls.call(module, inputs, setting.direction) for name, module in modules.items()}
        report.progress(f"{setting}: timing {len(timed)} providers in turn")
        return timing.wall_clock({name_of_ceiling: ceiling, **timed}, seconds), {}
    ceilings = [timing.device_time(ceiling, sets, seconds / 2)]
    timings: dict[str, Timing] = {}
    extras: dict[str, dict[str, float]] = {}
    small = calls.inputs(setting, 1, batch=1)
    for name, module in modules.items():
        report.progress(f"{setting} {name}: timing")
        call = calls.call(module, inputs, setting.direction)
        timings[name] = timing.device_time(call, sets, seconds)
        extras[name] = {
            "host_us": timing.host_time(calls.call(module, small, setting.direction), seconds),
            "peak_mem_mb": timing.peak_memory(call),
        }
    ceilings.append(timing.device_time(ceiling, sets, seconds / 2))
    timings[name_of_ceiling] = min(ceilings, key=lambda t: t.p50)
    return timings, extras
