"""Settings of every test run. TRITON_INTERPRET comes first, before anything can import Triton."""

import os

import hypothesis
import pytest
import torch  # does not import Triton

from tests.helpers import interpreter

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.mend()
    interpreter.hasten()

os.environ.pop("ULSAM_FUSED_BACKEND", None)  # the tests choose backends themselves

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; their child processes inherit the variable
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

hypothesis.settings.register_profile("ulsam_fused", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("ulsam_fused")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", metavar="I/N", help="only every N-th test, from the I-th on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--shard"):
        index, count = map(int, config.getoption("--shard").split("/"))
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % count != index])
        items[:] = items[index::count]
    if "PYTEST_XDIST_WORKER" in os.environ:  # slow tests first, so that at the end no worker waits long for another
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def device() -> str:
    """Where Triton kernels run here: natively on "cuda", by Triton's interpreter on "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)
