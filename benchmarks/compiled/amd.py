"""Compiles every shipped configuration for AMD's GPUs, without one, and reads what the code would need.

    python -m benchmarks.compiled.amd                              # gfx90a and gfx942 (many minutes)
    python -m benchmarks.compiled.amd --arch gfx942 --part 1/13    # every 13th configuration

No AMD GPU has run it. Exits with 1 where a kernel spills vector registers, or loses NaN in a maximum.
"""

import argparse
import itertools
import re
import sys
from typing import NamedTuple

from benchmarks.compiled.configurations import shipped
from benchmarks.compiled.stub_driver import Compiled, compile_only, phases

_WIDTHS = {"byte": 1, "ubyte": 1, "sbyte": 1, "short": 2, "ushort": 2, "sshort": 2}
_WIDTHS |= {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


class Needs(NamedTuple):
    """Of a compiled kernel."""

    warps: int
    registers: int  # vector registers per lane, of 512
    spills: int  # of them in memory
    scalar_spills: int  # scalar registers kept in lanes of vector registers, which costs little
    shared: int  # bytes per program, of 64 KB
    widest_load: int  # bytes per lane
    keeps_nan: bool  # the maximum gives NaN where an operand is NaN


def needs(compiled: Compiled) -> Needs:
    code, metadata = compiled.kernel.asm["amdgcn"], compiled.kernel.metadata

    def told(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        assert found is not None, name
        return int(found[1])

    return Needs(
        metadata.num_warps,
        told("vgpr_count"),
        told("vgpr_spill_count"),
        told("sgpr_spill_count"),
        metadata.shared,
        widest(code, "load"),
        re.search(r"v_cmp_(u|o)_f|v_max_f64", code) is not None,
    )


def widest(code: str, access: str) -> int:
    """Bytes per lane of the widest "load" or "store" of global memory."""
    names = re.findall(rf"\b(?:global|buffer|flat)_{access}_([a-z]+\d?)", code)
    return max((_WIDTHS[name] for name in names), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["gfx90a", "gfx942"], help="of GPUs with 64 lanes in a warp")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th configuration, from the I-th on")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    calls = shipped()[part - 1 :: parts]
    print(f"{'case':52} {'arch':8} {'kernel':16}" + "".join(f" {name[:9]:>9}" for name in Needs._fields))
    bad = 0
    for arch, call in itertools.product(arguments.arch, calls):
        with compile_only(arch) as launched:
            call.make()
        for each in launched:
            found = needs(each)
            name = "+".join(phases(each.constants)) or each.kernel.metadata.name.removesuffix("_kernel")
            pools = {"logits", "march"} & set(name.split("+"))
            wrong = bool(found.spills) or bool(pools and not found.keeps_nan)
            bad += wrong
            numbers = "".join(f" {value!s:>9}" for value in found)
            print(f"{call!s:52} {arch:8} {name:16}{numbers}{'  WRONG' * wrong}", flush=True)
    print(f"{len(calls)} configurations, {bad} kernels wrong")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
