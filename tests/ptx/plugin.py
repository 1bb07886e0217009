"""pytest -p tests.ptx.plugin: tests of kernels run on their PTX. PTX_ARCH=80 or 100 is for others than sm_90.

A test also fails where the emulator reports a fault; what is harmless is listed in the end.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"  # before anything imports Triton

import collections
from collections.abc import Iterator

import pytest

from .driver import Emulator, install

EMULATOR = install(int(os.environ.get("PTX_ARCH", "90")), assemble="PTX_ASSEMBLE" in os.environ)
SEEN: collections.Counter[str] = collections.Counter()


def pytest_configure() -> None:
    from ulsam_fused import backends

    backends.interpreting = lambda: True  # so that public functions, too, give tensors of the CPU to the kernels


@pytest.fixture(autouse=True)
def emulator() -> Iterator[Emulator]:
    EMULATOR.reports.clear()
    with EMULATOR.watch():
        yield EMULATOR
    SEEN.update(report.kind for report in EMULATOR.reports.values())
    SEEN["launches"] += len(EMULATOR.launches)
    EMULATOR.launches.clear()
    if EMULATOR.faults():
        pytest.fail("\n".join(map(str, EMULATOR.faults())), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    of = f"{len(EMULATOR.modules)} kernels of sm_{EMULATOR.target.arch}"
    terminalreporter.write_line(f"PTX: {of}, {', '.join(f'{n} {kind}' for kind, n in SEEN.items())}")
