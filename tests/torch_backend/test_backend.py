"""The vectorised PyTorch backend against the reference in float64: the same judge as the kernels'."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.golden import GRADIENTS, Case, Results, check, make_case, run_backward, run_forward, run_reference
from tests.helpers.layouts import channels_last, every_other_row, one_number
from ulsam_fused.torch_backend import backend as torch_backend
from ulsam_fused.torch_backend import primitives as torch_primitives

SHAPES = [  # shape of x, num_splits
    ((2, 8, 5, 6), 4),
    ((3, 6, 7, 7), 1),  # g = 1
    ((2, 6, 3, 4), 6),  # G = 1
    ((2, 6, 1, 1), 3),
    ((2, 4, 1, 5), 2),
    ((2, 4, 4, 1), 2),
    ((1, 4, 2, 2), 1),
    ((1, 1, 3, 4), 1),
    ((0, 4, 3, 3), 2),
]
FLAGS = (False, True)
NAMES = ("y", "A", *GRADIENTS)
Layout = Callable[[Tensor], Tensor]


def same_channel(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


FORMATS = pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last], ids=["nchw", "channels_last"])
LAYOUTS = pytest.mark.parametrize(
    "layout", [Tensor.contiguous, channels_last, every_other_row, same_channel], ids=lambda f: f.__name__
)


def make(
    shape: tuple[int, int, int, int],
    num_splits: int,
    dtype: torch.dtype = torch.float64,
    *,
    layout: Layout = Tensor.contiguous,
    integers: bool = False,
    **options: Any,
) -> Case:
    """With positive, negative and zero scale; an x of integers has ties."""
    case = make_case(shape, num_splits, dtype, **{"relu_u": True, "relu_z": True, **options})
    case.scale[1::5] = 0
    case.x = layout(case.x.round() if integers else case.x)
    return case


def run(case: Case, out_dtype: torch.dtype | None = None) -> Results:
    """Forward, and backward of what it has saved."""
    results, z, lse = run_forward(torch_backend, case, out_dtype=out_dtype)
    return dataclasses.replace(run_backward(torch_backend, case, z, lse), y=results.y, A=results.A)


@LAYOUTS
@pytest.mark.parametrize(("shape", "num_splits"), SHAPES)
def test_values_and_gradients_are_autograds(shape: tuple[int, int, int, int], num_splits: int, layout: Layout) -> None:
    for i, (relu_u, relu_z, shift, b) in enumerate(itertools.product(FLAGS, repeat=4)):
        for integers in FLAGS:
            options = {"relu_u": relu_u, "relu_z": relu_z, "shift": shift, "b": b}
            case = make(shape, num_splits, layout=layout, integers=integers, **options)
            arriving = (i + i // 4) % 4  # meets every pair of two flags
            if arriving in (1, 2):
                case.d_attention = None
            if arriving == 2 and len(case.x):
                case.dy = one_number(case.dy)
            if arriving == 3:
                case.dy = None
            check(case, run(case))


@FORMATS
@pytest.mark.parametrize("chunk", [1, 700, 10**9])
def test_chunks_of_the_batch_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int, layout: Layout) -> None:
    monkeypatch.setattr(torch_primitives, "CHUNK", chunk)  # 5 images of 210 elements: 1, 3 + 2 and 5 at once
    for relu in FLAGS:
        case = make((5, 6, 5, 7), 2, layout=layout, relu_u=relu, relu_z=relu)
        check(case, run(case))


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [None, torch.float32], ids=["", "float32 parameters"])
def test_types(dtype: torch.dtype, parameters: torch.dtype | None, layout: Layout) -> None:
    for relu in FLAGS:
        options = {"relu_u": relu, "relu_z": relu, "shift": relu, "b": relu, "parameters": parameters}
        case = make((4, 16, 9, 10), 4, dtype, layout=layout, **options)
        for out_dtype in (None, torch.float32):
            check(case, run(case, out_dtype))


@FORMATS
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_ties_go_to_the_first_maximum(sign: float, layout: Layout) -> None:
    case = make((1, 2, 3, 4), 1, relu_u=False, relu_z=False, shift=False, b=False)
    case.x = layout(torch.full_like(case.x, sign or 5.0))
    case.scale.fill_(sign)
    case.dy = None
    case.d_attention = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    case.d_attention[0, 0, 2, 3] = 1.0  # the window of the last pixel: its first pixel is (1, 2)
    results = run(case)
    first = [(max(h - 1, 0), max(w - 1, 0)) for h in range(3) for w in range(4)]
    dl = (case.d_attention - 1 / 12).flatten() / 12  # all of A is 1/12
    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    for (h, w), value in zip(first, dl, strict=True):
        expected[:, h, w] += case.scale * case.v * value
    torch.testing.assert_close(results.dx[0], expected, rtol=0, atol=1e-15)
    check(case, results)


@FORMATS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dy", FLAGS, ids=["no dy", ""])
def test_nan_and_infinity_reach_what_they_reach_in_the_reference(value: float, layout: Layout, dy: bool) -> None:
    for relu in FLAGS:
        case = make((2, 6, 5, 5), 3, relu_u=relu, relu_z=relu)
        case.scale[:2] = torch.tensor([1.5, -1.5])  # 0 * inf would be NaN everywhere
        for place in [(0, 0, 2, 2), (0, 0, 2, 3), (0, 0, 3, 1), (1, 1, 0, 0)]:
            case.x[place] = value
        case.x[1, 0, :3, :3] = value  # a whole window
        case.x = layout(case.x)
        case.dy = case.dy if dy else None
        results, golden = run(case), run_reference(case, torch.float64)
        for name in NAMES:
            # (1 + A) x and x + A x differ where A is 0 and x infinite: infinity and NaN, which count as one here
            pair = (getattr(found, name) for found in (results, golden))
            ours, theirs = (t.masked_fill(~t.isfinite(), torch.nan) for t in pair)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_a_shift_far_below_zero_leaves_exactly_zero() -> None:
    case = make((2, 4, 5, 5), 2, torch.float32, b=False)
    case.shift.fill_(-1e4)
    results, z, _ = run_forward(torch_backend, case)
    assert not z.any()
    torch.testing.assert_close(results.A, torch.full_like(results.A, 1 / 25))


def test_without_an_activation_the_softmax_sees_no_b() -> None:
    assert not run(make((2, 8, 6, 5), 4, torch.float32, relu_z=False)).db.any()


def test_logits_and_their_normaliser() -> None:
    case = make((2, 8, 6, 5), 4)
    case.b.sub_(1.0)
    results, z, lse = run_forward(torch_backend, case)
    assert (z < 0).any()  # before act_z
    torch.testing.assert_close(lse, z.relu().flatten(2).logsumexp(-1))
    torch.testing.assert_close(results.A, (z.relu() - lse[..., None, None]).exp())


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.float64])
def test_results_are_fresh_and_arguments_unchanged(
    dtype: torch.dtype, out_dtype: torch.dtype | None, layout: Layout
) -> None:
    for shape, splits, given_all in (((2, 8, 6, 5), 4, True), ((1, 1, 1, 1), 1, False)):
        options = dict.fromkeys(("relu_u", "relu_z", "shift", "b"), given_all)
        case = make(shape, splits, dtype, layout=layout, **options)
        given = [t for t in (*case.tensors(), case.dy, case.d_attention) if t is not None]
        copies = [t.clone() for t in given]
        with torch.no_grad():
            results, z, lse = run_forward(torch_backend, case, out_dtype=out_dtype, need_attention=given_all)
            gradients = run_backward(torch_backend, case, z, lse)
        assert all(torch.equal(t, copy) for t, copy in zip(given, copies, strict=True))
        made = [results.y, results.A, z, lse, *(getattr(gradients, name) for name in GRADIENTS)]
        addresses = [t.untyped_storage().data_ptr() for t in (*made, *given) if t is not None]
        assert len(set(addresses)) == len(addresses)


@FORMATS
def test_same_bits_again_and_under_autocast(layout: Layout) -> None:
    case = make((6, 64, 14, 14), 4, torch.float32, layout=layout)
    first, second = run(case), run(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(case)
    for name in NAMES:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert torch.equal(getattr(first, name), getattr(cast, name)), name


def test_routing_in_order_is_that_of_max_pool2d() -> None:
    x = make((3, 4, 5, 7), 2, integers=True).x
    e = torch.arange(x.numel(), dtype=torch.float64).view(x.shape)
    leaf = x.clone().requires_grad_()
    pooled, winner = torch.nn.functional.max_pool2d(leaf, 3, 1, 1, return_indices=True)
    (want,) = torch.autograd.grad(pooled, leaf, e)
    assert torch.equal(torch_primitives._route_in_order(e, winner), want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@LAYOUTS
def test_cuda(layout: Layout) -> None:
    for relu in FLAGS:
        case = make((3, 8, 5, 6), 4, relu_u=relu, relu_z=relu, integers=True, layout=layout, device="cuda")
        check(case, run(case))
