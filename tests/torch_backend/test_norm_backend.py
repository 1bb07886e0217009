"""The PyTorch backend between norms with batch statistics, against float64: the same judge as the kernels'."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.layouts import STRIDED, channels_last
from tests.helpers.norm_forward_golden import check_norm_forward, make_buffers, run_norm_forward
from tests.helpers.norm_golden import NormCase, check_norm, make_norm_case, run_norm_backward
from ulsam_fused.torch_backend import norm_backend as torch_norm
from ulsam_fused.torch_backend import primitives as torch_primitives

NORMS = pytest.mark.parametrize(
    ("batch1", "batch2"), [(True, True), (True, False), (False, True)], ids=["both", "depthwise", "pointwise"]
)
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])


def check_both(case: NormCase, **options: Any) -> None:
    """Forward with running statistics, and backward of a perfect forward."""
    __tracebackhide__ = True
    buffers = make_buffers(case, biases=options.pop("biases", True))
    after = buffers.clone()
    results = run_norm_forward(torch_norm, case, after, **options)
    check_norm_forward(case, results, interpreted=False, buffers=buffers, after=after)
    check_norm(case, run_norm_backward(torch_norm, case), interpreted=False)


@NORMS
@TYPES
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
def test_norms_types_and_formats(dtype: torch.dtype, nhwc: bool, batch1: bool, batch2: bool) -> None:
    for relu_u, relu_z in ((True, True), (False, False), (True, False), (False, True)):
        check_both(
            make_norm_case(
                (3, 6, 8, 5), 2, dtype, batch1=batch1, batch2=batch2, channels_last=nhwc, relu_u=relu_u, relu_z=relu_z
            )
        )


@NORMS
def test_without_shifts(batch1: bool, batch2: bool) -> None:
    case = make_norm_case((2, 4, 3, 5), 2, batch1=batch1, batch2=batch2, biases=False, relu_u=False, relu_z=False)
    check_both(case, biases=False)


@pytest.mark.parametrize("chunk", [1, 100, 10**9])
def test_chunks_of_the_batch_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_primitives, "CHUNK", chunk)
    check_both(make_norm_case((5, 6, 5, 7), 3))
    check_both(make_norm_case((5, 6, 5, 7), 3, torch.float32, channels_last=True))


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 5, 1, 1), (1, 4, 1, 6), (1, 4, 6, 1), (4, 3, 2, 2)], ids=str)
def test_small_maps(shape: tuple[int, int, int, int]) -> None:
    case = make_norm_case(shape, 1, relu_u=False, relu_z=False)
    buffers = make_buffers(case)
    after = buffers.clone()
    check_norm_forward(case, run_norm_forward(torch_norm, case, after), interpreted=False, buffers=buffers, after=after)
    if shape[2:] != (1, 1):  # where A is 1, and dx is 2 dy whatever the rest does
        check_norm(case, run_norm_backward(torch_norm, case), interpreted=False)


@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_strides(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    case = make_norm_case((3, 4, 5, 4), 2, dtype)
    check_both(dataclasses.replace(case, dy=layout(channels_last(case.dy))))
    if layout.__name__ != "one_number":
        check_both(dataclasses.replace(case, x=layout(case.x)))


@NORMS
@pytest.mark.parametrize("mean", [1000.0, -1000.0])
def test_a_large_mean(mean: float, batch1: bool, batch2: bool) -> None:
    check_both(make_norm_case((3, 4, 6, 5), 2, torch.float32, batch1=batch1, batch2=batch2, mean=mean))


def test_a_constant_channel_and_ties() -> None:
    case = make_norm_case((2, 4, 5, 6), 2, torch.float32)
    case.x[:, 1] = 0.1
    case.x[:, 2] = case.x[:, 2].round()
    check_both(case)
    mean, var, count = torch_norm.moments(case.x)
    assert var[1] <= (1e-6 * mean[1]) ** 2
    assert (count == 2 * 5 * 6).all()


class AnotherProcess:
    """Has these moments of its own images."""

    def __init__(self, moments: Tensor) -> None:
        self.moments = moments

    def gather(self, moments: Tensor) -> Tensor:
        return torch.cat((moments, self.moments))


def test_a_process_without_images_adds_nothing() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean, var, count = torch_norm.moments(x)
    other = AnotherProcess(torch.stack((count, mean, var * count)).unsqueeze(0))
    torch.testing.assert_close(torch_norm.moments(x[:0], other), torch.stack((mean, var, count)))


def test_without_an_activation_the_softmax_sees_no_constant() -> None:
    case = make_norm_case((2, 4, 5, 4), 2, torch.float32, batch2=False, relu_z=False)
    assert not run_norm_backward(torch_norm, case)["dbeta2"].any()


@pytest.mark.parametrize("parameters", [torch.float32, torch.float16])
def test_parameters_of_other_types(parameters: torch.dtype) -> None:
    check_both(make_norm_case((2, 4, 5, 4), 2, torch.float16, parameters=parameters, norms=torch.float32))


@pytest.mark.parametrize("arriving", ["dy", "d_attention"])
@NORMS
def test_one_gradient_alone(arriving: str, batch1: bool, batch2: bool) -> None:
    case = make_norm_case((2, 4, 5, 4), 2, batch1=batch1, batch2=batch2, relu_z=False)
    case = dataclasses.replace(case, **{"dy" if arriving == "d_attention" else "d_attention": None})
    check_norm(case, run_norm_backward(torch_norm, case), interpreted=False)
