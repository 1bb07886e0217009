"""`ulsam-fused bench`: times of the layer, fused and not, at the places where the paper puts it."""

import argparse
import contextlib
import itertools
import pathlib
from collections.abc import Mapping

import torch

from ..bench import networks, plot, report, rows
from ..bench.directions import DEFAULT, NAMED
from ..bench.measure import rows_of
from ..bench.networks import NetworkResult, NetworkRow, NetworkWorkload
from ..bench.providers import Provider, providers
from ..bench.rows import Result
from ..bench.workload import Workload, check_case
from ..console import devices, files, model_options
from ..console.errors import UserError

GPU_CASES = (
    "64x512x14x14/g4", "64x1024x7x7/g4", "64x160x7x7/g8", "64x256x28x28/g4", "16x32x112x112/g1", "16x32x112x112/g4",
)  # fmt: skip
CPU_CASES = ("8x512x14x14/g4", "8x1024x7x7/g4", "8x160x7x7/g4", "8x256x28x28/g4", "4x32x112x112/g4")
QUICK = slice(0, 3, 2)  # two of either


def run(args: argparse.Namespace) -> int:
    model_options.check(args, "batch", "size")
    if args.model is not None and (args.case or args.plot):
        raise UserError("--model does not go with --case or --plot")
    if args.seconds is not None and not args.seconds > 0:
        raise UserError(f"--seconds must be above 0, got {args.seconds}")
    device = devices.pick(args.device)
    backends = devices.fused_backends(args.backend, device)
    if not args.backend:
        backends = [name for name in backends if not devices.interpreted(name, device)]
    outputs = [path for path in (args.json, args.plot) if path is not None]
    for path in outputs:
        files.check_output(path)
    if args.plot is not None:
        plot.require(args.plot)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        passed = (_layer if args.model is None else _networks)(args, backends, device)
    if not files.is_stdout(args.json):
        for path in outputs:
            print(f"written: {path}")
    return 0 if passed else 1


def _layer(args: argparse.Namespace, backends: list[str], device: torch.device) -> bool:
    """Measure and print the layer's providers; False where one of them is wrong or fails."""
    workloads = _workloads(args, device)
    found = _providers(args, backends, workloads)
    seconds = args.seconds or (0.3 if args.quick else 1.0)
    result: Result = {**rows.heading(device), "rows": []}
    for workload in workloads:
        wanted = [p for p in found if args.compile or args.provider or workload.form or not p.compiled]
        taking_part = [p for p in wanted if workload.form in (None, p.form) and p.takes_part(workload.direction)]
        result["rows"] += rows_of(workload, taking_part, seconds)
        _keep(args.json, result)
    _give(args.json, result, report.details(result, found) if args.verbose else report.summary(result))
    if args.plot is not None:
        plot.bars(result, args.plot)
    return not any(row["error"] for row in result["rows"])


def _providers(args: argparse.Namespace, backends: list[str], workloads: list[Workload]) -> list[Provider]:
    names = args.provider or ()
    compiled = args.compile or any(workload.form for workload in workloads) or any("+compile" in name for name in names)
    found = providers(backends, compiled, args.onnx)
    for name in names:
        if name not in [p.name for p in found]:
            raise UserError(f"--provider must be one of {', '.join(p.name for p in found)}, got {name!r}")
    return [p for p in found if not names or p.name in names]


def _workloads(args: argparse.Namespace, device: torch.device) -> list[Workload]:
    sizes = (GPU_CASES if device.type == "cuda" else CPU_CASES)[QUICK if args.quick else slice(None)]
    dtype = args.dtype or ("float16" if device.type == "cuda" else "float32")
    layouts, directions = args.layout or ["nchw"], args.direction or DEFAULT
    workloads = []
    for case in args.case or sizes:
        if case in NAMED:
            for size, layout in itertools.product(sizes, layouts):
                workloads.append(Workload(size, NAMED[case], dtype, layout, device, form="upstream"))
        else:
            check_case(case)
            for layout, direction in itertools.product(layouts, directions):
                workloads.append(Workload(case, direction, dtype, layout, device))
    return workloads


def _networks(args: argparse.Namespace, backends: list[str], device: torch.device) -> bool:
    """Measure and print whole networks; raises UserError where one computes something else than eager."""
    if args.insert is None and args.replace is None:
        args.insert = networks.DEFAULT_PLACES[args.model]
    batch = networks.DEFAULT_BATCH[device.type] if args.batch is None else args.batch
    side = 224 if args.size is None else args.size
    if batch < 1 or not 32 <= side <= 1024:
        raise UserError("--batch must be at least 1, and --size from 32 to 1024")
    directions = args.direction or list(networks.DIRECTIONS)
    for direction in directions:
        if direction not in networks.DIRECTIONS:
            raise UserError(f"--model measures {' and '.join(networks.DIRECTIONS)}, not {direction}")
    dtype = devices.DTYPES[args.dtype or ("float16" if device.type == "cuda" else "float32")]
    seconds = args.seconds or (1.0 if args.quick else 5.0)
    found = networks.models(args, backends, device)
    problem = networks.problem_with(found, side)
    if problem is not None:
        raise UserError(f"{problem}; nothing was timed")
    measured: list[NetworkRow] = []
    for layout, direction in itertools.product(args.layout or ["nchw"], directions):
        workload = NetworkWorkload(direction, dtype, layout, batch, side, device)
        measured += networks.rows_of(found, workload, seconds, args.compile)
    described = model_options.describe(args)
    result: NetworkResult = {**rows.heading(device), "model": described, "size": side, "rows": measured}
    _give(args.json, result, networks.table(result, args.verbose))
    return True


def _keep(path: pathlib.Path | None, result: Result) -> None:
    """After every workload: a run that is stopped leaves what it has beside the file, which it does not replace."""
    if path is not None and not files.is_special(path):
        files.write_json(files.part(path), result)


def _give(path: pathlib.Path | None, result: Mapping[str, object], table: str) -> None:
    """The table, or JSON in place of it, or the table and a file of JSON."""
    if not files.is_stdout(path):
        print(table)
    if path is not None:
        files.write_json(path, result)
        files.part(path).unlink(missing_ok=True)
