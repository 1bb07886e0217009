"""The C++ loops on other machines than this one: compiled for each, and run where that can be done."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from ulsam_fused.kernels.cpu import build

SOURCE = Path(__file__).with_name("values.cpp")
X86 = platform.machine() in ("x86_64", "AMD64")

MACHINES = {  # what compiles for them, what runs it
    "x86-64 without AVX": (["g++", "-march=x86-64", "-O0"], []),
    "x86-64 with AVX-512": (["g++", "-march=skylake-avx512", "-O0"], None),  # compiled only: this CPU may lack it
    "aarch64": (["aarch64-linux-gnu-g++", "-static", "-O1"], ["qemu-aarch64"]),
}


@pytest.mark.slow  # compiles for 10 seconds
@pytest.mark.parametrize("machine", MACHINES)
def test_vectors_give_what_single_numbers_give(machine: str, tmp_path: Path) -> None:
    compiler, emulator = MACHINES[machine]
    tools = [compiler[0], *(emulator or [])]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"there is no {missing[0]}")
    if machine.startswith("x86") and not X86:
        pytest.skip("another machine's flags")
    include = Path(torch.__file__).parent / "include"
    program = tmp_path / "values"
    flags = ["-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
    folders = ["-I", str(build.FOLDER), "-isystem", str(include)]
    subprocess.run([*compiler, *flags, *folders, str(SOURCE), "-o", str(program)], check=True)
    if emulator is not None:
        done = subprocess.run([*emulator, str(program)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "2080 cases" in done.stdout
