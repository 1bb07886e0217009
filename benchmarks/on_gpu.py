"""Runs on a machine with a GPU, in one call: the tests with real kernels, `check`, and the benchmark.

    python -m benchmarks.on_gpu --output benchmarks/results

Nothing is measured after a failed test or check, unless with `--keep-going`. Test files run in parts, side by side,
because compiling hundreds of kernels takes most of their time; each part has a log. The benchmark starts with what
matters most and keeps every row. What it has no time for is missing, and the summary says so.
Writes <gpu>-torch<version>-triton<version>.json after every part, with all rows so far. Needs PyTorch, Triton, pytest
and hypothesis; the package need not be installed. Then, anywhere:

    python -m benchmarks.published.plots && python -m benchmarks.published.tables

`python -m benchmarks.tuning.candidates --output F` tells whether other launch configurations are faster.
"""

import argparse
import concurrent.futures
import os
import pathlib
import sys
import time

import torch

from benchmarks import parts, sizes
from ulsam_fused.bench.cases import LAYOUTS
from ulsam_fused.bench.directions import DIRECTIONS

TESTS = {  # how many processes share a file: compiling its kernels takes minutes
    "kernels/gpu/test_backward.py": 6, "kernels/gpu/test_forward.py": 3, "kernels/gpu/test_norm_backward.py": 4,
    "kernels/gpu/test_norm_forward.py": 3, "kernels/gpu/test_memory.py": 2, "test_upstream.py": 2,
    "kernels/gpu/test_whole_map.py": 2, "test_authors_layers.py": 1, "test_called_layers.py": 1,
    "ops/test_registration.py": 2, "ops/test_norm_registration.py": 2, "kernels/gpu/test_wide.py": 1,
    "ops/test_values.py": 1, "ops/test_mixed_precision.py": 1, "fuzz/test_fuzz.py": 1, "ops/test_gradcheck.py": 1,
    "test_functional.py": 1, "torch_backend/test_backend.py": 1, "test_mutants.py": 1,
    "models/test_mobilenet.py": 1, "test_gpu_only.py": 1,
}  # fmt: skip
SIDE_BY_SIDE = max(1, (os.cpu_count() or 1) - 2)
COMPILED = 3  # so many sizes: torch.compile takes half a minute for each


def tests(folder: pathlib.Path, seconds: float) -> dict[str, int]:
    """Run every part of every test file, print a line for each; the exit status of each."""

    def one(name: str, part: str) -> tuple[str, int, str]:
        log = folder / f"{name.replace('/', '-').removesuffix('.py')}-{part.replace('/', 'of')}.log"
        file = str(parts.ROOT / "tests" / name)
        status, text = parts.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--shard", part, file], log, seconds)
        return f"{name} {part}", status, (text.strip().splitlines()[-1:] or ["no output"])[0]

    found = {}
    wanted = [(name, f"{i}/{count}") for name, count in TESTS.items() for i in range(count)]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for done in concurrent.futures.as_completed([pool.submit(one, *each) for each in wanted]):
            name, status, last = done.result()
            found[name] = status
            print(f"tests/{name}: exit {status}: {last}", flush=True)
    return found


def warm_up(folder: pathlib.Path, device: str, seconds: float) -> None:
    """Compile every kernel that the benchmark needs. A failure is not reported here: the benchmark meets it again."""

    def one(case: str) -> int:
        log = folder / f"warm-up-{case.replace('/', '-')}.log"
        return parts.run(["-m", "benchmarks.warm_up", case, device], log, seconds)[0]

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        done = list(pool.map(one, sizes.CASES))
    print(f"kernels of {done.count(0)} of {len(done)} sizes compiled in {time.monotonic() - start:.0f} s", flush=True)


def plan(device: str, quick: bool) -> list[parts.Part]:
    """The most important first: where time runs out, the last are missing."""
    backend = "triton" if device != "cpu" else "torch"
    plain = ("eager", "vectorised", f"fused[{backend}]", f"fused[{backend}]+norm")
    compiled = (*plain, "eager+compile", "vectorised+compile")

    def part(name: str, dtype: str, cases: tuple[str, ...], providers: tuple[str, ...]) -> parts.Part:
        options = ["--device", device, "--dtype", dtype, "--seconds", "0.02" if quick else "0.05"]
        options += parts.repeated("--layout", LAYOUTS) + parts.repeated("--direction", DIRECTIONS)
        options += parts.repeated("--case", cases[: 1 if quick else None]) + parts.repeated("--provider", providers)
        return parts.Part(name, tuple(options))

    return [
        part("float16", "float16", sizes.CASES, plain),
        part("compiled", "float16", sizes.CASES[:COMPILED], compiled),
        part("float32", "float32", sizes.CASES, plain),
        part("bfloat16", "bfloat16", sizes.CASES, plain),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for the logs (default: the same)")
    parser.add_argument("--seconds", type=float, default=540, help="for all together (default: 540)")
    parser.add_argument("--keep-going", action="store_true", help="measure even after a failure")
    parser.add_argument("--skip-tests", action="store_true", help="where they have passed already")
    parser.add_argument("--quick", action="store_true", help="one size, short measurements")
    parser.add_argument("--commit", metavar="HASH", help="what this tree is a copy of, where git cannot say it")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself, without the tests")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU is available to PyTorch here")
    end = time.monotonic() + arguments.seconds
    folder, logs = parts.folders(arguments)
    on_cpu = arguments.device == "cpu"

    outcome: dict[str, int] = {}
    if not on_cpu and not arguments.skip_tests:
        outcome |= tests(logs, 0.45 * arguments.seconds)
    command = ["-m", "ulsam_fused", "check", "--quick", "--device", arguments.device]
    outcome["check"], text = parts.run(command, logs / "check.log", 0.15 * arguments.seconds)
    print("check:", (text.strip().splitlines()[-1:] or ["no output"])[0], flush=True)
    if any(outcome.values()) and not arguments.keep_going:
        print("nothing was measured, since something is wrong; see the logs")
        return 1

    if not on_cpu and not arguments.quick:
        warm_up(logs, arguments.device, 0.3 * arguments.seconds)
    path, measured = parts.measure(plan(arguments.device, arguments.quick), folder, logs, end, arguments.commit)
    return parts.summary(path, outcome | {f"bench {name}": status for name, status in measured.items()})


if __name__ == "__main__":
    sys.exit(main())
