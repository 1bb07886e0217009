"""Tests that run with the plugin, in a process of their own: where kernels are interpreted, none is compiled."""

import os
import pathlib
import subprocess
import sys

from tests.helpers.processes import ROOT


def emulated(*arguments: str, cache: pathlib.Path, **told: str) -> str:
    """What pytest prints of tests that run with the plugin; `make` keeps compiled kernels, others do not."""
    environment = {"TRITON_CACHE_DIR": str(cache)} | os.environ | {"PYTHONPATH": str(ROOT)} | told
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ptx.plugin", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout
