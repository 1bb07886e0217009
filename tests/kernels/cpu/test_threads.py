"""One result, whoever computes it: any number of threads, several callers at once, a forked process."""

import concurrent.futures
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange, NormSaved
from ulsam_fused.kernels.cpu import backend, build, norm_backend

from tests.helpers.golden import make_case
from tests.helpers.norm_golden import make_norm_case

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))

SHAPES = [
    ((5, 64, 14, 14), 4),  # whole maps, one image in a block
    ((40, 24, 14, 14), 3),  # several images in a block
    ((1, 32, 56, 60), 2),  # few large maps: whole with 1 and 2 threads, cut into strips with 3
    ((3, 40, 20, 50), 1),  # cut into strips with 2
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def all_results(shape: tuple[int, int, int, int], num_splits: int, nhwc: bool) -> list[Tensor]:
    torch.manual_seed(0)
    case = make_case(shape, num_splits, torch.float32, channels_last=nhwc, relu_u=True, relu_z=True)
    y, A, z, lse = backend.forward(case.tensors(), case.options())
    gradients = backend.backward(case.dy, case.d_attention, case.tensors(), z, lse, case.options())
    norm = make_norm_case(shape, num_splits, torch.float32, channels_last=nhwc)
    found = norm_backend.norm_forward(norm.tensors(), norm.options(), Exchange())
    saved = NormSaved(found.z, found.lse, found.first, found.second)
    norm_gradients = norm_backend.norm_backward(norm.dy, norm.d_attention, norm.tensors(), saved, norm.options())
    results = (y, A, z, lse, *gradients, *found, *norm_gradients)
    return [t for t in results if t is not None]


def assert_same(some: list[Tensor], others: list[Tensor]) -> None:
    assert len(some) == len(others) == 22
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.slow  # all results of 8 cases, three times
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("shape", "num_splits"), SHAPES, ids=str)
def test_any_number_of_threads(shape: tuple[int, int, int, int], num_splits: int, nhwc: bool) -> None:
    torch.set_num_threads(1)
    alone = all_results(shape, num_splits, nhwc)
    for number in (2, 3):
        torch.set_num_threads(number)
        assert_same(alone, all_results(shape, num_splits, nhwc))


def test_several_callers_at_once() -> None:
    torch.manual_seed(0)
    case = make_case((4, 32, 14, 14), 4, torch.float32)

    def call() -> list[Tensor]:
        y, _, z, lse = backend.forward(case.tensors(), case.options())
        return [y, z, *backend.backward(case.dy, None, case.tensors(), z, lse, case.options())]

    alone = call()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: call(), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(alone, results, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process() -> None:
    """As a DataLoader's worker: one thread, whatever the parent had."""
    torch.set_num_threads(2)
    case = make_case((4, 32, 14, 14), 4, torch.float32)
    arguments = (case.tensors(), case.options())
    expected = backend.forward(*arguments)[0]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            status = 0 if torch.equal(expected, backend.forward(*arguments)[0]) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
