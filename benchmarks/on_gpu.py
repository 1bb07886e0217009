"""Everything that a machine with a GPU is for, in one call: the tests natively, `check`, and the benchmark.

    python benchmarks/on_gpu.py --output benchmarks/results

Correctness first: nothing is measured after a failed test or check unless `--keep-going`. Test files run side by side,
since compiling hundreds of kernels is their cost, and each has its log. The benchmark goes from what matters most to
what matters least, and keeps every row as it comes: what the time did not suffice for is missing, and said to be.
Writes <gpu>-torch<version>-triton<version>.json, prints the outcome and the tables last. Needs no installed package,
only PyTorch, Triton, pytest and hypothesis.
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = [
    "kernels/test_forward.py", "kernels/test_backward.py", "kernels/test_norm_forward.py",
    "kernels/test_norm_backward.py", "kernels/test_memory.py", "kernels/test_wide.py", "test_upstream.py",
    "test_norm_ops.py", "test_ops.py", "test_mixed_precision.py", "test_properties.py", "test_gradcheck.py",
    "test_functional.py", "test_torch_backend.py", "test_mutants.py", "test_models.py",
]  # fmt: skip
SIDE_BY_SIDE = max(1, (os.cpu_count() or 1) - 2)

CASES = (
    "256x512x14x14/g4", "256x128x56x56/g4", "64x160x7x7/g8", "256x1024x7x7/g4", "1x512x14x14/g4", "128x64x56x56/g1",
    "256x32x112x112/g1", "128x128x28x28/g4", "256x256x28x28/g1", "256x512x14x14/g1", "256x1024x7x7/g16",
    "32x128x56x56/g4", "1x64x56x56/g4",
)  # fmt: skip
BENCHMARKS = {  # the most important first
    "float16": ["--dtype", "float16", "--layout", "both"],
    "compiled": ["--dtype", "float16", "--layout", "both", "--compile"],
    "float32": ["--dtype", "float32", "--layout", "both"],
    "bfloat16": ["--dtype", "bfloat16", "--layout", "both"],
}
COMPILED = CASES[:3]  # torch.compile takes half a minute for each


def run(command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
    """Exit status (124 when out of time) and output, which also goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        try:
            status = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file,
                timeout=max(seconds, 1),
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = 124
    return status, log.read_text()


def tests(folder: pathlib.Path, seconds: float) -> dict[str, int]:
    """Exit status of every test file; prints a line for each."""

    def one(name: str) -> tuple[str, int, str]:
        log = folder / f"{name.replace('/', '-').removesuffix('.py')}.log"
        status, text = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / name)], log, seconds)
        return name, status, (text.strip().splitlines()[-1:] or ["no output"])[0]

    found = {}
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for done in concurrent.futures.as_completed([pool.submit(one, name) for name in TESTS]):
            name, status, last = done.result()
            found[name] = status
            print(f"tests/{name}: exit {status}: {last}", flush=True)
    return found


def benchmark(
    folder: pathlib.Path, options: list[str], end: float, quick: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """All rows under one heading, and the exit status of every part; a part that has no time left is not begun."""
    result: dict[str, Any] = {"rows": []}
    outcome = {}
    for name, arguments in BENCHMARKS.items():
        left = end - time.monotonic()
        if left < 15:
            outcome[name] = 124
            continue
        cases = (COMPILED if name == "compiled" else CASES)[: 1 if quick else None]
        rows = folder / f"rows-{name}.json"
        command = ["-m", "ulsam_fused", "bench", *options, *arguments, "--json", str(rows)]
        command += ["--direction", "all", "--seconds", "0.02" if quick else "0.1"]
        command += [word for case in cases for word in ("--case", case)]
        outcome[name], text = run(command, folder / f"bench-{name}.log", left)
        print(text if outcome[name] == 0 else "\n".join(text.splitlines()[-5:]), flush=True)
        if rows.exists():
            part = json.loads(rows.read_text())
            result = {**part, "rows": result["rows"] + part["rows"]}
            rows.unlink()
    return result, outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for the logs (default: the same)")
    parser.add_argument("--seconds", type=float, default=540, help="for all together (default: 540)")
    parser.add_argument("--keep-going", action="store_true", help="measure even after a failure")
    parser.add_argument("--skip-tests", action="store_true", help="where they have passed already")
    parser.add_argument("--quick", action="store_true", help="one size, short measurements")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself, without the tests")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU is available to PyTorch here")
    end = time.monotonic() + arguments.seconds
    folder: pathlib.Path = arguments.output
    logs: pathlib.Path = arguments.logs or folder
    for made in (folder, logs):
        made.mkdir(parents=True, exist_ok=True)
    device = ["--device", arguments.device]

    outcome: dict[str, int] = {}
    if arguments.device != "cpu" and not arguments.skip_tests:
        outcome |= tests(logs, 0.45 * arguments.seconds)
    command = ["-m", "ulsam_fused", "check", "--quick", *device]
    outcome["check"], text = run(command, logs / "check.log", 0.15 * arguments.seconds)
    print("check:", (text.strip().splitlines()[-1:] or ["no output"])[0], flush=True)
    if any(outcome.values()) and not arguments.keep_going:
        print("nothing was measured, since something is wrong; see the logs")
        return 1

    result, parts = benchmark(logs, device, end, arguments.quick)
    outcome |= {f"bench {name}": status for name, status in parts.items()}
    gpu = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
    triton = importlib.metadata.version("triton")
    stem = re.sub(r"[^a-z0-9.]+", "-", f"{gpu}-torch{torch.__version__.split('+')[0]}-triton{triton}".lower())
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result['rows'])} rows: {folder / stem}.json")
    for name, status in outcome.items():
        if status:
            print(f"{name}: {'out of time' if status == 124 else f'exit {status}'}")
    return int(any(outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
