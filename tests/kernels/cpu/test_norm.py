"""The C++ operator between BatchNorms against the float64 reference: the same judges as the Triton kernels'."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.contract import NormSaved
from ulsam_fused.kernels.cpu import build, norm_backend

from tests.helpers.layouts import STRIDED, channels_last, one_number
from tests.helpers.norm_forward_golden import check_norm_forward, make_buffers, run_norm_forward
from tests.helpers.norm_golden import (
    GRADIENTS,
    NormCase,
    budgets,
    check_norm,
    make_norm_case,
    run_norm_backward,
    run_norm_reference,
    saved,
)
from tests.kernels.norms import Twins, gradients_of_twins, run_folded

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))

FORMATS = pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
NORMS = pytest.mark.parametrize(
    ("batch1", "batch2"), [(True, True), (True, False), (False, True)], ids=["both", "depthwise", "pointwise"]
)


def check_both(case: NormCase, **options: Any) -> None:
    """Forward with running statistics, and backward of a perfect forward."""
    __tracebackhide__ = True
    buffers = make_buffers(case, biases=options.pop("biases", True))
    after = buffers.clone()
    results = run_norm_forward(norm_backend, case, after, **options)
    check_norm_forward(case, results, interpreted=False, buffers=buffers, after=after)
    check_norm(case, run_norm_backward(norm_backend, case), interpreted=False)


@NORMS
@TYPES
@FORMATS
def test_norms_types_and_formats(dtype: torch.dtype, nhwc: bool, batch1: bool, batch2: bool) -> None:
    for relu_u, relu_z in ((True, True), (False, False), (True, False), (False, True)):
        check_both(
            make_norm_case(
                (3, 18, 8, 5), 2, dtype, batch1=batch1, batch2=batch2, channels_last=nhwc, relu_u=relu_u, relu_z=relu_z
            )
        )


@NORMS
@FORMATS
def test_without_shifts(nhwc: bool, batch1: bool, batch2: bool) -> None:
    case = make_norm_case(
        (2, 16, 3, 5), 2, batch1=batch1, batch2=batch2, biases=False, relu_u=False, relu_z=False, channels_last=nhwc
    )
    check_both(case, biases=False)


@FORMATS
@pytest.mark.parametrize("w", [6, 7, 8, 9, 14, 15, 16, 17, 28, 40])
def test_widths(w: int, nhwc: bool) -> None:
    check_both(make_norm_case((2, 20, 6, w), 2, torch.float32, channels_last=nhwc))


@FORMATS
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 16, 33])
def test_channels(channels: int, nhwc: bool) -> None:
    check_both(make_norm_case((3, channels, 6, 9), 1, torch.float32, channels_last=nhwc))


@FORMATS
@pytest.mark.parametrize("shape", [(1, 8, 50, 90), (40, 8, 9, 9), (1, 8, 3, 700)], ids=str)
def test_pieces_and_blocks(shape: tuple[int, int, int, int], nhwc: bool) -> None:
    """More than a piece of the moments in a channel, few large maps, more images than a block has, long rows."""
    check_both(make_norm_case(shape, 1, torch.float32, channels_last=nhwc))


@NORMS
def test_maps_that_share_lines(batch1: bool, batch2: bool) -> None:
    check_both(make_norm_case((5, 16, 48, 48), 4, torch.float32, channels_last=True, batch1=batch1, batch2=batch2))


@pytest.mark.slow  # large maps
def test_more_maps_than_are_held_at_once() -> None:
    check_both(make_norm_case((2, 1, 730, 730), 1, torch.float32))


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 5, 1, 1), (1, 4, 1, 6), (1, 4, 6, 1), (4, 3, 2, 2)], ids=str)
def test_small_maps(shape: tuple[int, int, int, int]) -> None:
    case = make_norm_case(shape, 1, relu_u=False, relu_z=False)
    buffers = make_buffers(case)
    after = buffers.clone()
    results = run_norm_forward(norm_backend, case, after)
    check_norm_forward(case, results, interpreted=False, buffers=buffers, after=after)
    gradients = run_norm_backward(norm_backend, case)
    golden = run_norm_reference(case, torch.float64)
    for name, budget in budgets(case, golden, gradients, False).items():
        assert (gradients[name].double() - golden[name]).norm() <= budget, name


@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_strides(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    case = make_norm_case((3, 16, 5, 9), 2, dtype)
    check_both(dataclasses.replace(case, dy=layout(channels_last(case.dy))))
    check_both(dataclasses.replace(case, x=channels_last(case.x), dy=layout(case.dy)))
    if layout is not one_number:
        check_both(dataclasses.replace(case, x=layout(case.x)))


@FORMATS
def test_strided_parameters(nhwc: bool) -> None:
    """Judged with dense ones: PyTorch's batch_norm in channels_last misreads a weight with strides."""
    case = make_norm_case((1, 16, 2, 3), 2, channels_last=nhwc)
    names = ("dw", "gamma1", "beta1", "pw", "gamma2", "beta2")
    case.d_attention = case.d_attention[:1, :, :, :1].expand(case.d_attention.shape)
    twice = dataclasses.replace(case, **{name: getattr(case, name).repeat_interleave(2)[::2] for name in names})
    check_norm_forward(case, run_norm_forward(norm_backend, twice), interpreted=False)
    check_norm(case, run_norm_backward(norm_backend, twice), interpreted=False)


@NORMS
@FORMATS
@pytest.mark.parametrize("mean", [1000.0, -1000.0])
def test_a_large_mean(mean: float, nhwc: bool, batch1: bool, batch2: bool) -> None:
    check_both(
        make_norm_case((3, 8, 6, 9), 1, torch.float32, batch1=batch1, batch2=batch2, mean=mean, channels_last=nhwc)
    )


@FORMATS
def test_a_constant_channel_and_ties(nhwc: bool) -> None:
    case = make_norm_case((2, 16, 5, 6), 2, torch.float32, channels_last=nhwc)
    case.x[:, 1] = 0.1
    case.x[:, 2] = case.x[:, 2].round()
    check_both(case)
    mean, var, count = norm_backend.moments(case.x)
    assert var[1] <= (1e-6 * mean[1]) ** 2
    assert (count == 2 * 5 * 6).all()


@pytest.mark.parametrize("parameters", [torch.float32, torch.float16])
def test_parameters_of_other_types(parameters: torch.dtype) -> None:
    case = make_norm_case((2, 4, 5, 4), 2, torch.float16, parameters=parameters, norms=torch.float32)
    check_both(case)
    case.dy = torch.randn_like(case.dy, dtype=torch.float32)
    check_both(case, out_dtype=torch.float32)


@pytest.mark.parametrize("arriving", ["dy", "d_attention"])
@NORMS
def test_one_gradient_alone(arriving: str, batch1: bool, batch2: bool) -> None:
    case = make_norm_case((2, 4, 5, 4), 2, batch1=batch1, batch2=batch2, relu_z=False)
    case = dataclasses.replace(case, **{"dy" if arriving == "d_attention" else "d_attention": None})
    check_norm(case, run_norm_backward(norm_backend, case), interpreted=False)


@pytest.mark.parametrize("parameter", ["dw", "gamma1", "gamma2"])
@pytest.mark.parametrize("signs", ["negative", "zero", "mixed"])
def test_signs(parameter: str, signs: str) -> None:
    case = make_norm_case((2, 12, 3, 5), 3)
    given = getattr(case, parameter)
    factor = {"negative": [-1.0, -1.0, -1.0], "zero": [0.0, 0.0, 0.0], "mixed": [1.0, -1.0, 0.0]}[signs]
    setattr(case, parameter, given.abs() * torch.tensor(factor, dtype=given.dtype).repeat(len(given) // 3))
    case.beta1 = case.beta1.abs()
    gradients = run_norm_backward(norm_backend, case)
    check_norm(case, gradients, interpreted=False)
    if signs == "zero" and parameter == "gamma1":
        assert gradients["ddw"].count_nonzero() == 0


@NORMS
def test_gradients_apart_in_memory(batch1: bool, batch2: bool) -> None:
    case = make_norm_case((2, 2, 3, 3), 1, torch.float32, batch1=batch1, batch2=batch2)
    gradients = run_norm_backward(norm_backend, case)
    given = [name for name in GRADIENTS if gradients[name] is not None]
    assert len({gradients[name].untyped_storage().data_ptr() for name in given}) == len(given)
    assert all(gradients[name].untyped_storage().nbytes() <= 4 * max(gradients[name].numel(), 1) for name in given)


def test_running_statistics_are_marked_as_written() -> None:
    """Autograd may have saved them: it must know that they are no longer what they were."""
    case = make_norm_case((2, 4, 5, 4), 2)
    buffers = make_buffers(case)
    before = {name: getattr(buffers, name)._version for name in ("mean1", "var1", "mean2", "var2")}
    run_norm_forward(norm_backend, case, buffers)
    assert all(getattr(buffers, name)._version > version for name, version in before.items())


def test_without_an_activation_the_softmax_sees_no_constant() -> None:
    case = make_norm_case((2, 4, 5, 4), 2, torch.float32, batch2=False, relu_z=False)
    assert not run_norm_backward(norm_backend, case)["dbeta2"].any()


# --- several processes ----------------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_group(dtype: torch.dtype, batch1: bool, batch2: bool) -> None:
    """Twins have the statistics of one, and half of the parameters' gradients of their images stacked twice."""
    case = make_norm_case((2, 4, 3, 4), 2, dtype, batch1=batch1, batch2=batch2)
    group = Twins()
    results = run_norm_forward(norm_backend, case, group=group)
    assert group.calls == batch1 + batch2
    if batch1:
        assert (results.pop("count") == 2 * 2 * 12).all()
    if batch2:
        assert (results.pop("count2") == 2 * 2 * 12).all()
    check_norm_forward(case, results, interpreted=False)
    z, lse, first, second = saved(case)
    if batch1:
        first[4] *= 2
    second[5] *= 2
    gradients = norm_backend.norm_backward(
        case.dy, case.d_attention, case.tensors(), NormSaved(z, lse, first, second), case.options(), group,
    )  # fmt: skip
    check_norm(case, dict(zip(GRADIENTS, gradients, strict=True)), gradients_of_twins(case), interpreted=False)


# --- what is not a number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", [torch.Tensor.contiguous, *(f for f in STRIDED if f is not one_number)], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("at", [(0, 0, 0), (3, 2, 2), (7, 4, 8)], ids=str)
def test_nan_without_a_first_norm_and_with(at: tuple[int, int, int], layout: Callable[[Tensor], Tensor]) -> None:
    """The logits alone notice what is not finite where no statistic of x does."""
    case = make_norm_case((2, 8, 5, 9), 1, torch.float32, batch1=False)
    case.x[(0, *at)] = torch.nan
    case = dataclasses.replace(case, x=layout(case.x))
    for batch1 in (False, True):
        case = dataclasses.replace(case, gamma1=torch.ones(8) if batch1 else None)
        results = run_norm_forward(norm_backend, case)
        assert results["y"].isnan().all()


def test_nan_in_one_image() -> None:
    folded_case = make_norm_case((2, 8, 5, 9), 1, torch.float32)
    folded_case.x[0, 3, 2, 2] = torch.nan
    y = run_folded(norm_backend, folded_case, make_buffers(folded_case))["y"]
    assert y[0].isnan().all()
    assert y[1].isfinite().all()
