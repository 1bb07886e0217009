"""What the kernels cost, without a GPU: every shipped configuration is compiled for real, its machine code read.

    python -m benchmarks.compiled.resources                    # every configuration, sm_90, a table
    python -m benchmarks.compiled.resources --arch 80 90 100 --json resources.json
    python -m benchmarks.compiled.resources --matrix           # each configuration in every type that uses it

The launcher itself runs, on tensors without storage, with a driver that has a target and no device; so what is
compiled is what a GPU would be given, specialised arguments and all. Must run in a process without TRITON_INTERPRET.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from ulsam_fused.kernels.contract import Exchange, FixedNorm, NormSaved, Options, Running
from ulsam_fused.kernels.gpu import (
    backend as launcher,
)
from ulsam_fused.kernels.gpu import (
    norm_backend as norm_launcher,
)
from ulsam_fused.kernels.gpu.backward import MARCH_ROWS
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig
from ulsam_fused.kernels.gpu.launching.geometry import compared_size

from benchmarks.compiled import budgets

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
# (C, H, W) of 64 images with one subspace: for each width of tile a slab for one warp and one for four
SHAPES = [(20, 7, 7), (256, 7, 7), (8, 14, 14), (128, 14, 14), (2, 28, 28), (32, 28, 28)]
# for the matrix: channels that the tile divides, or does not, where those above are the other way
OTHER = [(32, 7, 7), (250, 7, 7), (100, 14, 14), (20, 28, 28)]
LARGE = [(20, 56, 56), (32, 56, 56)]  # in float32 and float64 split for their size
# of the backward with BatchNorm, whose march is the backward's: type, channels_last, shape, whether both norms or one
NORM_BACKWARD = [
    ("float32", False, (32, 28, 28), True),
    ("float16", True, (32, 28, 28), True),
    ("float64", False, (32, 28, 28), True),
    ("float16", False, (8, 14, 14), False),
]
# of the forward with BatchNorm, whose march is the forward's: direction, type, channels_last, shape, split
NORM_FORWARD = [
    ("norm_forward", "float16", False, (32, 28, 28), False),
    ("norm_forward", "float32", True, (32, 28, 28), True),
    ("norm_forward", "float16", True, (8, 14, 14), False),
    ("folded", "float16", False, (128, 14, 14), False),
    ("folded", "float32", True, (32, 28, 28), True),
]
NUM_SMS = 30  # so that 64 slabs are not too few


@dataclasses.dataclass(frozen=True)
class Case:
    """One launch configuration, and a call that takes it."""

    direction: str  # "forward", "backward", "norm_forward", "folded" or "norm_backward"
    dtype: str
    channels_last: bool
    shape: tuple[int, int, int]  # C, H, W
    general: bool  # with biases and both ReLUs, or the paper's form; norm_backward: both norms, or the pointwise one
    config: LaunchConfig


@dataclasses.dataclass(frozen=True)
class Resources:
    """One compiled kernel."""

    case: str
    arch: int
    kernel: str
    registers: int
    stack: int  # bytes per thread; not 0 means spills
    spills: int  # loads and stores of local memory in the code
    shared: int  # bytes per program
    warps_per_sm: int  # resident, as registers and shared memory allow
    barriers: int  # in the hottest loop
    load_bytes: int  # widest load and store of global memory, bytes per lane
    store_bytes: int
    march: float  # lane-instructions per element of the row march, or of the sweep for moments
    sweep: float  # lane-instructions per element of the forward's second sweep
    nan_maximum: bool  # the maximum keeps NaN


def shipped(matrix: bool = False) -> list[Case]:
    """Every distinct configuration, with the type that presses it most; in a matrix, with every type and form."""
    cases: dict[Any, Case] = {}
    shapes = SHAPES + (OTHER + LARGE) * matrix
    for direction, dtype, channels_last, shape, general, split in itertools.product(
        ("forward", "backward"), DTYPES, (False, True), shapes, (False, True), (False, True)
    ):
        config = _chosen(direction, dtype, channels_last, (64, *shape))
        # the regimes share a tile: one configuration is seen as both launches of a split, in a matrix all are
        if split != config.split and not (split and shape[1] > configs.ROWS and (matrix or shape == SHAPES[-1])):
            continue
        tile = dataclasses.replace(config, split=False, strip_rows=0)
        config = dataclasses.replace(config, split=split, strip_rows=configs.ROWS if split else 0)
        case = Case(direction, dtype, channels_last, shape, general, config)
        # the type that takes most registers stands for all, but each direction is seen in 16 and in 32 bits
        wanted = ("float16", "float32") if direction == "forward" else ("float32", "float16")
        key = case if matrix else (direction, channels_last, tile)
        if key not in cases or (case.dtype == wanted[channels_last] and case.general):
            cases[key] = case
    few = [  # slabs, of one launch nevertheless
        Case("forward", dtype, channels_last, (128, 14, 14), True, config)
        for dtype, channels_last in (("float16", False), ("float16", True))
        for config in [_chosen("forward", dtype, channels_last, (1, 128, 14, 14))]
    ]
    return list(cases.values()) + few + _norm_forward_cases(matrix) + _norm_backward_cases(matrix)


def _chosen(direction: str, dtype: str, channels_last: bool, shape: tuple[int, int, int, int]) -> LaunchConfig:
    arguments = (shape, 1, DTYPES[dtype].itemsize, channels_last, NUM_SMS)
    if direction == "forward":
        return configs.forward_config(*arguments)
    return configs.backward_config(*arguments, compared_size(DTYPES[dtype]))


def _norm_forward_cases(matrix: bool) -> list[Case]:
    if not matrix:
        chosen: Any = NORM_FORWARD
    else:
        chosen = itertools.product(
            ("norm_forward", "folded"), DTYPES, (False, True), SHAPES + OTHER + LARGE, (False, True)
        )
    cases = []
    for direction, dtype, channels_last, shape, split in chosen:
        config = configs.forward_config((64, *shape), 1, DTYPES[dtype].itemsize, channels_last, NUM_SMS)
        config = dataclasses.replace(config, split=split, strip_rows=configs.ROWS if split else 0)
        cases.append(Case(direction, dtype, channels_last, shape, True, config))
    return cases


def _norm_backward_cases(matrix: bool) -> list[Case]:
    chosen = itertools.product(DTYPES, (False, True), SHAPES + OTHER, (False, True)) if matrix else NORM_BACKWARD
    return [
        Case("norm_backward", dtype, channels_last, shape, both, config)
        for dtype, channels_last, shape, both in chosen
        for config in [_chosen("backward", dtype, channels_last, (64, *shape))]
    ]


def compile_case(case: Case, arch: int) -> Iterator[Resources]:
    """The kernels that this call launches on this architecture."""
    for name, kernel, constants in _launches(case, arch):
        sass, usage = _machine_code(kernel)
        yield _read(case, arch, name, kernel, sass, usage, constants)


class _Driver:
    """A Triton driver that has a target and no device."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@contextlib.contextmanager
def compile_only(arch: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Launches inside compile for this architecture and run nothing; yields the kernels and their constants."""
    triton.runtime.driver.set_active(_Driver(arch))
    compiled: list[tuple[Any, dict[str, Any]]] = []
    original = triton.JITFunction.run

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append((original(kernel, *args, grid=grid, warmup=True, **kwargs), kwargs))

    triton.JITFunction.run = run
    try:
        yield compiled
    finally:
        triton.JITFunction.run = original


def _launches(case: Case, arch: int) -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, kernel and constants of every launch."""
    with compile_only(arch) as compiled:
        _call(case)
    return [
        (
            "+".join(name.lower() for name in ("LOGITS", "APPLY", "REDUCE", "MARCH") if constants.get(name))
            or kernel.metadata.name.removeprefix("norm_").removesuffix("_kernel"),
            kernel,
            constants,
        )
        for kernel, constants in compiled
    ]


def _march_elements(direction: str, constants: dict[str, Any]) -> int:
    """Elements of one turn of the march, or of the sweep for moments."""
    if "BLOCK_W" in constants:
        rows = configs.ROWS
        if "backward" in direction:
            rows = MARCH_ROWS.value * constants["COLUMNS"]  # of each of the BLOCK_W strips
        return int(constants["BLOCK_C"] * constants["BLOCK_W"] * rows)
    return int(constants.get("BLOCK_C", 1) * constants["BLOCK_P"])


def _sweep_elements(constants: dict[str, Any]) -> int:
    """Elements of one turn of the second sweep."""
    run = constants.get("RUN", 1)
    return int(constants["BLOCK_P"] * max(constants["BLOCK_K"] // run, 1) * run)


def _call(case: Case) -> None:
    dtype = DTYPES[case.dtype]
    n, (c, h, w) = 64, case.shape
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    x = torch.empty((n, c, h, w), dtype=dtype, device="meta").to(memory_format=layout)
    p = torch.empty(c, dtype=torch.promote_types(dtype, torch.float32), device="meta")
    shift, b = (p, p[:1]) if case.general else (None, None)
    relu = case.general
    if case.direction == "forward":
        launcher.forward(x, p, shift, p, b, Options(1, relu, relu), config=case.config)
        return
    if case.direction == "norm_forward":
        norm_launcher.norm_forward(
            x, p, p, p, p, p[:1], p[:1], Options(1, True, True, eps1=1e-5, eps2=1e-5),
            Exchange(Running(p, p, p, 0.1), Running(p, p, p, 0.1)), config=case.config,
        )  # fmt: skip
        return
    if case.direction == "folded":
        norms = FixedNorm(p, p, p, p, 1e-5), FixedNorm(p[:1], p[:1], p[:1], p[:1], 1e-5)
        norm_launcher.folded_forward(
            x, p, p, norms[0], p, p[:1], norms[1], Options(1, True, True, eps1=1e-5, eps2=1e-5), config=case.config
        )
        return
    z, lse = p.new_empty((n, 1, h, w)), p.new_empty((n, 1))
    if case.direction == "norm_backward":
        first, second = p.new_empty((5, c)), p.new_empty((6, 1))
        norm_launcher.norm_backward(
            x, None, x, p, p if case.general else None, p, p, p[:1], p[:1], NormSaved(z, lse, first, second),
            Options(1, True, True, eps1=1e-5), config=case.config,
        )  # fmt: skip
    else:
        launcher.backward(x, None, x, p, shift, p, b, z, lse, Options(1, relu, relu), config=case.config)


def _machine_code(kernel: Any) -> tuple[str, str]:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dump(flag: str) -> str:
            return subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout

        return dump("-sass"), dump("-res-usage")


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def _read(case: Case, arch: int, name: str, kernel: Any, sass: str, usage: str, constants: dict[str, Any]) -> Resources:
    code = [(int(address, 16), op, rest) for address, op, rest in _LINE.findall(sass)]
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, stack = int(found[1]), int(found[2])
    loop = _hottest_loop(code)
    kinds = collections.Counter(op.split(".")[0] for op in loop)
    shared = int(kernel.metadata.shared)
    warps = int(kernel.metadata.num_warps)
    lanes = 32 * warps
    march = sweep = 0.0
    if {"logits", "march", "moments"} & set(name.split("+")):
        march = round(len(loop) * lanes / _march_elements(case.direction, constants), 1)
    if "apply" in name:
        sweep = round(len(_hottest_loop(code, "STG")) * lanes / _sweep_elements(constants), 1)
    by_registers = 65536 // (max(-(-registers // 8) * 8, 16) * 32 * warps)
    by_shared = 227 * 1024 // (shared + 1024)
    return Resources(
        case=_label(case),
        arch=arch,
        kernel=name,
        registers=registers,
        stack=stack,
        spills=sum(op.startswith(("LDL", "STL")) for _, op, _ in code),
        shared=shared,
        warps_per_sm=min(64, warps * min(by_registers, by_shared, 32)),
        barriers=kinds["BAR"],
        load_bytes=_width(code, "LDG"),
        store_bytes=_width(code, "STG"),
        march=march,
        sweep=sweep,
        nan_maximum=bool(re.search(r"MNMX\S*\.NAN|max\S*\.NaN", sass + kernel.asm["ptx"])),
    )


def _hottest_loop(code: list[tuple[int, str, str]], access: str = "LDG") -> list[str]:
    """The innermost loop with the most loads: the row march, wherever there is one. Or that with the most stores."""
    loops = []
    for address, op, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
        if target and int(target[1], 16) < address - 16:
            loops.append((int(target[1], 16), address))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    if not innermost:
        return []
    bodies = [[op for address, op, _ in code if start <= address <= end] for start, end in innermost]
    return max(bodies, key=lambda body: (sum(op.startswith(access) for op in body), len(body)))


def _width(code: list[tuple[int, str, str]], access: str) -> int:
    widths = [
        next((size for suffix, size in _WIDTHS.items() if suffix in op.split(".")), 4)
        for _, op, _ in code
        if op.split(".")[0] == access
    ]
    return max(widths, default=0)


def _label(case: Case) -> str:
    c, h, w = case.shape
    layout = "channels_last" if case.channels_last else "nchw"
    forms = ("both", "pointwise") if case.direction == "norm_backward" else ("general", "paper")
    form = forms[not case.general]
    return f"{case.direction} {case.dtype} {layout} {c}x{h}x{w} {form}"


_COLUMNS = "{:52} {:>4} {:12}" + " {:>6}" * 11


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[90], help="compute capabilities, e.g. 80 90 100")
    parser.add_argument("--matrix", action="store_true", help="every type and form, not one for each configuration")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a budget is exceeded")
    arguments = parser.parse_args()
    if launcher.INTERPRETED:
        parser.error("TRITON_INTERPRET is set; nothing can be compiled in this process")
    cases = shipped(arguments.matrix)
    targets = ", ".join(f"sm_{arch}" for arch in arguments.arch)
    print(f"Triton {triton.__version__}: {len(cases)} configurations for {targets}")
    print(_COLUMNS.format(*("regs" if f.name == "registers" else f.name[:6] for f in dataclasses.fields(Resources))))
    rows = []
    for arch, case in itertools.product(arguments.arch, cases):
        for row in map(dataclasses.asdict, compile_case(case, arch)):
            rows.append(row)
            print(_COLUMNS.format(*row.values()), flush=True)
    over = {f"{row['case']} sm_{row['arch']}": v for row in rows if (v := budgets.violations(row))}
    for case, found in over.items():
        print(f"over budget: {case}: {'; '.join(found)}")
    print("\nwhere to work: the march's instructions over the floor that memory sets on an H200, most first")
    ranked = [(share, row) for row in rows if (share := budgets.over_floor(row)) is not None]
    for share, row in sorted(ranked, key=lambda found: -found[0])[:8]:
        print(f"  {share:5.2f}  {row['case']} sm_{row['arch']}, {row['kernel']}: {row['march']}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(
            json.dumps({"triton": triton.__version__, "configurations": len(cases), "rows": rows}, indent=1)
        )
    return int(arguments.check and bool(over))


if __name__ == "__main__":
    sys.exit(main())
