"""Scripts: in a fresh process, free of what the test process has imported or been told, or in this process."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
"""The repository, or an unpacked sdist."""

_TOLD = ("PYTHONPATH", "PYTHONSTARTUP", "TRITON_INTERPRET", "ULSAM_FUSED_BACKEND")


def run_python(arguments: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300) -> str:
    """Run this interpreter with the arguments in the folder cwd; its standard output.

    The environment is this process's without the variables that steer Python, Triton or the package, plus env.

    Raises:
        AssertionError: an exit status other than 0; the message holds everything that was printed.
    """
    __tracebackhide__ = True
    environment = {name: value for name, value in os.environ.items() if name not in _TOLD} | dict(env or {})
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_main(script: ModuleType, *arguments: object) -> int | None:
    """Call a script's `main` in this process with these arguments; its exit status. No import is paid for again."""
    with mock.patch.object(sys, "argv", [script.__name__, *map(str, arguments)]):
        status: int | None = script.main()
    return status
