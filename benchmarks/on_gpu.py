"""Everything that a machine with a GPU is for, in one call: the tests natively, `check`, and the benchmark.

    python benchmarks/on_gpu.py --output benchmarks/results

Correctness first: no benchmark is run after a failed test or check unless `--keep-going`. Writes tests.log, check.log
and <gpu>-torch<version>-triton<version>.json to the folder, prints the outcome and the benchmark's table last. Needs no
installed package, only PyTorch, Triton, pytest and hypothesis.
"""

import argparse
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = ["kernels", "test_gradcheck.py", "test_mutants.py", "test_properties.py", "test_ops.py", "test_functional.py"]
TESTS += ["test_upstream.py", "test_norm_ops.py", "test_mixed_precision.py", "test_models.py"]


def run(command: list[str], log: pathlib.Path, seconds: float) -> tuple[int, str]:
    """Exit status (124 when out of time) and output, which also goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        try:
            status = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    return status, log.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for logs and results")
    parser.add_argument("--seconds", type=float, default=540, help="for all together (default: 540)")
    parser.add_argument("--keep-going", action="store_true", help="measure even after a failure")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter measurements")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself, without the tests")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU is available to PyTorch here")
    folder: pathlib.Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    quick = ["--quick"] if arguments.quick else []
    device = ["--device", arguments.device]

    stages = [("check", ["-m", "ulsam_fused", "check", *device, *quick], 0.2)]
    if arguments.device != "cpu":
        tests = [str(ROOT / "tests" / name) for name in TESTS]
        stages.insert(0, ("tests", ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], 0.5))
    outcome, failed = [], False
    for name, command, share in stages:
        status, text = run(command, folder / f"{name}.log", arguments.seconds * share)
        failed |= status != 0
        last = text.strip().splitlines()[-1:] or ["no output"]
        outcome.append(f"{name}: exit {status}: {last[0]}")
        print(outcome[-1], flush=True)
    if failed and not arguments.keep_going:
        print("nothing was measured, since something is wrong; see the logs")
        return 1

    gpu = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
    triton = importlib.metadata.version("triton")
    stem = re.sub(r"[^a-z0-9.]+", "-", f"{gpu}-torch{torch.__version__.split('+')[0]}-triton{triton}".lower())
    command = [
        "-m",
        "ulsam_fused",
        "bench",
        *device,
        *quick,
        "--layout",
        "both",
        "--json",
        str(folder / f"{stem}.json"),
    ]
    status, text = run(command, folder / "bench.log", arguments.seconds * 0.3)
    print(text)
    print("\n".join([*outcome, f"bench: exit {status}"]))
    return int(failed or status != 0)


if __name__ == "__main__":
    sys.exit(main())
