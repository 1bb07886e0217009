"""What the kernels cost, without a GPU: every shipped configuration is compiled and its machine code read.

    python -m benchmarks.compiled.resources                    # every configuration, sm_90, a table
    python -m benchmarks.compiled.resources --arch 80 90 100 --json resources.json
    python -m benchmarks.compiled.resources --matrix           # each configuration in every type that uses it

The package's own launcher runs, on tensors without storage and a driver without a device, so the code is what a GPU
would be given, specialised arguments included. TRITON_INTERPRET must not be set.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import triton
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu.backward import MARCH_ROWS
from ulsam_fused.kernels.gpu.launching import config as configs

from benchmarks.compiled import budgets, machine_code
from benchmarks.compiled.budgets import Resources
from benchmarks.compiled.configurations import Call, shipped
from benchmarks.compiled.stub_driver import Compiled, compile_only, phases

REGISTERS_PER_SM, SHARED_PER_SM, PROGRAMS_PER_SM, WARPS_PER_SM = 65536, 227 * 1024, 32, 64
_COLUMNS = "{:52} {:>4} {:12}" + " {:>6}" * 11


def compiled_for(call: Call, arch: int) -> Iterator[Resources]:
    """The kernels that this call launches on this architecture."""
    with compile_only(arch) as launched:
        call.make()
    for compiled in launched:
        yield _read(call, arch, compiled)


def _read(call: Call, arch: int, compiled: Compiled) -> Resources:
    kernel, constants = compiled
    name = _name(compiled)
    code, usage = machine_code.instructions(kernel), machine_code.usage(kernel)
    loop = machine_code.hottest_loop(code)
    shared, warps = int(kernel.metadata.shared), int(kernel.metadata.num_warps)
    march = sweep = 0.0
    if {"logits", "march", "moments"} & set(name.split("+")):
        march = round(len(loop) * 32 * warps / _march_elements(call.direction, constants), 1)
    if "apply" in name:
        stores = machine_code.hottest_loop(code, "STG")
        sweep = round(len(stores) * 32 * warps / _sweep_elements(constants), 1)
    return Resources(
        case=str(call),
        arch=arch,
        kernel=name,
        registers=usage.registers,
        stack=usage.stack,
        spills=sum(each.name.startswith(("LDL", "STL")) for each in code),
        shared=shared,
        warps_per_sm=_resident_warps(usage.registers, shared, warps),
        barriers=sum(name.split(".")[0] == "BAR" for name in loop),
        load_bytes=machine_code.widest(code, "LDG"),
        store_bytes=machine_code.widest(code, "STG"),
        march=march,
        sweep=sweep,
        nan_maximum=machine_code.keeps_nan(kernel, code),
    )


def _name(compiled: Compiled) -> str:
    """The phases of the kernel that this launch runs, or its own name where it has no phases."""
    own: str = compiled.kernel.metadata.name
    return "+".join(phases(compiled.constants)) or own.removeprefix("norm_").removesuffix("_kernel")


def _resident_warps(registers: int, shared: int, warps: int) -> int:
    """Warps that an SM holds of programs with so many registers per thread and bytes of shared memory."""
    by_registers = REGISTERS_PER_SM // (max(-(-registers // 8) * 8, 16) * 32 * warps)
    by_shared = SHARED_PER_SM // (shared + 1024)
    return min(WARPS_PER_SM, warps * min(by_registers, by_shared, PROGRAMS_PER_SM))


def _march_elements(direction: str, constants: dict[str, Any]) -> int:
    """Elements of one turn of the march, or of the sweep for moments."""
    if constants.get("LANE"):  # whole rows in a lane; a loop where they are not all written out
        rows = constants["MAP_H"] if constants["MAP_H"] <= configs.ROWS else MARCH_ROWS.value
        return int(constants["BLOCK_C"] * constants["MAP_W"] * rows)
    if "BLOCK_W" in constants:
        rows = constants.get("MAP_H") or configs.ROWS
        if "backward" in direction and not constants.get("MAP_H"):
            rows = MARCH_ROWS.value * (constants["COLUMNS"] if constants["CHANNELS_LAST"] else 1)  # BLOCK_W: strips
        return int(constants["BLOCK_C"] * constants["BLOCK_W"] * rows)
    return int(constants.get("BLOCK_C", 1) * constants["BLOCK_P"])


def _sweep_elements(constants: dict[str, Any]) -> int:
    """Elements of one turn of the second sweep."""
    if constants.get("MAP_H"):
        return int(constants["BLOCK_C"] * constants["BLOCK_W"] * constants["MAP_H"])
    run = constants.get("RUN", 1)
    return int(constants["BLOCK_P"] * max(constants["BLOCK_K"] // run, 1) * run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[90], help="compute capabilities, e.g. 80 90 100")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th configuration, from the I-th on")
    parser.add_argument("--matrix", action="store_true", help="every type and form, not one for each configuration")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a budget is exceeded")
    arguments = parser.parse_args()
    if launcher.INTERPRETED:
        parser.error("TRITON_INTERPRET is set; nothing can be compiled in this process")
    part, parts = map(int, arguments.part.split("/"))
    calls = shipped(arguments.matrix)[part - 1 :: parts]
    targets = ", ".join(f"sm_{arch}" for arch in arguments.arch)
    print(f"Triton {triton.__version__}: {len(calls)} configurations for {targets}")
    print(_COLUMNS.format(*("regs" if name == "registers" else name[:6] for name in Resources.__annotations__)))
    rows = []
    for arch, call in itertools.product(arguments.arch, calls):
        for row in compiled_for(call, arch):
            rows.append(row)
            print(_COLUMNS.format(*row.values()), flush=True)
    over = {f"{row['case']} sm_{row['arch']}": v for row in rows if (v := budgets.violations(row))}
    for label, violations in over.items():
        print(f"over budget: {label}: {'; '.join(violations)}")
    print("\nwhere to work: the march's instructions over the floor that memory sets on an H200, most first")
    ranked = [(share, row) for row in rows if (share := budgets.over_floor(row)) is not None]
    for share, row in sorted(ranked, key=lambda found: -found[0])[:8]:
        print(f"  {share:5.2f}  {row['case']} sm_{row['arch']}, {row['kernel']}: {row['march']}")
    if arguments.json:
        result = {"triton": triton.__version__, "configurations": len(calls), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1))
    return int(arguments.check and bool(over))


if __name__ == "__main__":
    sys.exit(main())
