"""The vectorised PyTorch backend against autograd through the reference in float64."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Forward, Gradients, Options

from ulsam_fused import reference
from ulsam_fused.torch_backend import backend as torch_backend
from ulsam_fused.torch_backend import primitives as torch_primitives

NAMES = ("y", "A", "dx", "dscale", "dshift", "dv", "db")
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
LAYOUTS = ("nchw", "channels_last", "strided", "expanded")


class Case(NamedTuple):
    """The arguments of one forward and one backward call."""

    x: Tensor
    scale: Tensor
    shift: Tensor | None
    v: Tensor
    b: Tensor | None
    num_splits: int
    relu_u: bool = False
    relu_z: bool = False
    dy: Tensor | None = None
    d_attention: Tensor | None = None


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, x.neg()], -1).transpose(2, 3).contiguous()[..., 0].transpose(2, 3)
    return x[:, :1].expand(x.shape) if layout == "expanded" else x


def make(
    shape: tuple[int, ...],
    num_splits: int,
    *,
    shift: bool = True,
    b: bool = True,
    relu: tuple[bool, bool] = (True, True),
    integers: bool = False,
    layout: str = "nchw",
    dtype: torch.dtype = torch.float64,
    gradients: tuple[str, bool] = ("dense", True),
    seed: int = 0,
) -> Case:
    """Random arguments with positive, negative and zero scale; v is large enough for peaked maps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    N, C, H, W = shape
    x = normal(*shape)
    scale = normal(C)
    scale[1::5] = 0
    dy = {"dense": normal(*shape), "stride 0": normal(1).view(1, 1, 1, 1).expand(shape), "none": None}[gradients[0]]
    return Case(
        laid_out(x.round() if integers else x, layout),
        scale,
        normal(C) if shift else None,
        3 * normal(C) * (num_splits / C) ** 0.5,
        normal(num_splits) if b else None,
        num_splits,
        *relu,
        dy,
        normal(N, num_splits, H, W) if gradients[1] else None,
    )


def of_reference(case: Case, dtype: torch.dtype, out_dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """y, A and the gradients by autograd through the reference with every argument in `dtype`."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in case[:5]]
    x, scale, shift, v, b = leaves
    assert x is not None
    assert scale is not None
    assert v is not None
    y, A = reference.general_form(
        x, scale, shift, v, b, case.num_splits, relu_u=case.relu_u, relu_z=case.relu_z, out_dtype=out_dtype
    )
    pairs = [(out, d.to(out.dtype)) for out, d in ((y, case.dy), (A, case.d_attention)) if d is not None]
    outputs, arriving = zip(*pairs, strict=True)
    given = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(outputs, given, arriving, allow_unused=True, materialize_grads=True))
    return [y.detach(), A.detach(), *(None if t is None else next(found) for t in leaves)]


def of_backend(case: Case, out_dtype: torch.dtype | None = None) -> list[Tensor | None]:
    y, A, z, lse = forward(case, out_dtype)
    return [y, A, *backward(case, z, lse)]


def forward(case: Case, out_dtype: torch.dtype | None = None, need_attention: bool = True) -> Forward:
    options = Options(case.num_splits, case.relu_u, case.relu_z, out_dtype, need_attention)
    return torch_backend.forward(Inputs(case.x, case.scale, case.shift, case.v, case.b), options)


def backward(case: Case, z: Tensor, lse: Tensor | None) -> Gradients:
    assert lse is not None
    options = Options(case.num_splits, case.relu_u, case.relu_z)
    inputs = Inputs(case.x, case.scale, case.shift, case.v, case.b)
    return torch_backend.backward(case.dy, case.d_attention, inputs, z, lse, options)


def assert_equal(case: Case) -> None:
    for name, ours, theirs in zip(NAMES, of_backend(case), of_reference(case, torch.float64), strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda s, n=name: f"{n}: {s}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "num_splits"), SHAPES)
def test_values_and_gradients_are_autograds(shape: tuple[int, ...], num_splits: int, layout: str) -> None:
    flags = (False, True)
    arriving = [("dense", True), ("dense", False), ("stride 0", False), ("none", True)]
    for i, (relu_u, relu_z, shift, b) in enumerate(itertools.product(flags, repeat=4)):
        for integers in flags:
            case = make(
                shape,
                num_splits,
                shift=shift,
                b=b,
                relu=(relu_u, relu_z),
                integers=integers,
                layout=layout,
                gradients=arriving[(i + i // 4) % 4],  # meets every pair of two flags
            )
            assert_equal(case)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("chunk", [1, 700, 10**9])
def test_chunks_of_the_batch_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int, layout: str) -> None:
    monkeypatch.setattr(torch_primitives, "CHUNK", chunk)  # 5 images of 210 elements: 1, 3 + 2 and 5 at once
    assert_equal(make((5, 6, 5, 7), 2, layout=layout))
    assert_equal(make((5, 6, 5, 7), 2, layout=layout, relu=(False, False)))


def relative_error(ours: Tensor, exact: Tensor, identity: Tensor | float = 0.0) -> float:
    """Norm of the error relative to that of what is left of `exact` without its identity part."""
    return float((ours.double() - exact).norm() / (exact - identity).norm())


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loses_no_more_than_twice_what_the_reference_loses(dtype: torch.dtype, relu: bool, layout: str) -> None:
    # by result: squared norms of the backend's error, of the reference's error and of the exact result, over all draws:
    # one draw of v is few numbers, and their sums may cancel
    norms: dict[str, Tensor] = {}
    for seed in range(8):
        case = make((4, 16, 9, 10), 4, relu=(relu, relu), shift=relu, b=relu, dtype=dtype, layout=layout, seed=seed)
        assert case.dy is not None
        exact = of_reference(case, torch.float64)
        identity = {"y": case.x.double(), "dx": case.dy.double()}  # both are an identity plus a small attention part
        eager = of_reference(case, dtype, torch.float32)
        for name, ours, theirs, want in zip(NAMES, of_backend(case, torch.float32), eager, exact, strict=True):
            assert (ours is None) == (want is None)
            if ours is not None and theirs is not None and want is not None:
                parts = (ours - want, theirs - want, want - identity.get(name, 0))
                norms[name] = norms.get(name, 0) + torch.stack([t.double().square().sum() for t in parts])
        assert exact[0] is not None
        assert relative_error(case.x, exact[0], identity["y"]) == pytest.approx(1)  # returning x would fail
    assert len(norms) == (7 if relu else 5)
    for name, (ours, theirs, size) in norms.items():
        assert (ours / size).sqrt() <= 2 * (theirs / size).sqrt() + torch.finfo(dtype).eps, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_parameters_beside_half_x(dtype: torch.dtype) -> None:
    case = make((2, 8, 6, 6), 2, dtype=torch.float32)
    case = case._replace(x=case.x.to(dtype))
    exact, ours = of_reference(case, torch.float64), of_backend(case)
    for name, got, want in zip(NAMES, ours, exact, strict=True):
        assert got is not None
        assert want is not None
        assert got.dtype == (dtype if name in ("y", "dx") else torch.float32)
        assert relative_error(got, want) <= (torch.finfo(dtype).eps if name in ("y", "dx") else 1e-5), name


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_ties_go_to_the_first_maximum(sign: float, layout: str) -> None:
    x = laid_out(torch.full((1, 2, 3, 4), sign or 5.0, dtype=torch.float64), layout)
    scale = torch.full((2,), sign, dtype=torch.float64)
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    d_attention = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    d_attention[0, 0, 2, 3] = 1.0  # the window of the last pixel: its first pixel is (1, 2)
    case = Case(x, scale, None, v, None, 1, d_attention=d_attention)
    _, _, z, lse = forward(case)
    dx, *_ = backward(case, z, lse)
    first = [(max(h - 1, 0), max(w - 1, 0)) for h in range(3) for w in range(4)]
    dl = (d_attention - 1 / 12).flatten() / 12  # all of A is 1/12
    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    for (h, w), value in zip(first, dl, strict=True):
        expected[:, h, w] += scale * v * value
    torch.testing.assert_close(dx[0], expected, rtol=0, atol=1e-15)
    assert_equal(case)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dy", ["dense", "none"])
def test_nan_and_infinity_reach_what_they_reach_in_the_reference(
    value: float, relu: bool, layout: str, dy: str
) -> None:
    case = make((2, 6, 5, 5), 3, relu=(relu, relu), gradients=(dy, True))
    case.scale[0] = 1.5  # 0 * inf would be NaN everywhere
    case.scale[1] = -1.5
    for place in [(0, 0, 2, 2), (0, 0, 2, 3), (0, 0, 3, 1), (1, 1, 0, 0)]:
        case.x[place] = value
    case.x[1, 0, :3, :3] = value  # a whole window
    case = case._replace(x=laid_out(case.x, layout))
    for name, ours, theirs in zip(NAMES, of_backend(case), of_reference(case, torch.float64), strict=True):
        assert ours is not None
        assert theirs is not None
        # (1 + A) x and x + A x differ where A is 0 and x infinite: infinity and NaN, which count as one here
        ours, theirs = (t.masked_fill(~t.isfinite(), torch.nan) for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_a_shift_far_below_zero_leaves_exactly_zero() -> None:
    case = make((2, 4, 5, 5), 2, dtype=torch.float32)
    case = case._replace(shift=torch.full((4,), -1e4), b=None)
    _, A, z, _ = forward(case)
    assert not z.any()
    torch.testing.assert_close(A, torch.full_like(A, 1 / 25))


def test_logits_and_their_normaliser() -> None:
    case = make((2, 8, 6, 5), 4)
    _, A, z, lse = forward(case)
    assert (z < 0).any()  # before act_z
    assert z.shape == A.shape == (2, 4, 6, 5)
    assert z.is_contiguous()
    torch.testing.assert_close(lse, z.relu().flatten(2).logsumexp(-1))
    torch.testing.assert_close(A, (z.relu() - lse[..., None, None]).exp())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.float64])
def test_types_strides_and_fresh_results(out_dtype: torch.dtype | None, layout: str) -> None:
    case = make((2, 8, 6, 5), 4, dtype=torch.bfloat16, layout=layout)
    copies = [t.clone() for t in case if isinstance(t, Tensor)]
    with torch.no_grad():
        y, A, z, lse = forward(case, out_dtype, need_attention=False)
        assert y.dtype == (out_dtype or torch.bfloat16)
        assert y.stride() == torch.empty_like(case.x).stride()
        assert A is None
        assert z.dtype == lse.dtype == torch.float32
        gradients = backward(case, z, lse)
    assert gradients[0].stride() == torch.empty_like(case.x).stride()
    assert all(d is not None and d.dtype == torch.bfloat16 for d in gradients)
    given = [t for t in case if isinstance(t, Tensor)]
    assert all(torch.equal(t, copy) for t, copy in zip(given, copies, strict=True))
    made = [t for t in (y, z, lse, *gradients) if t is not None]
    addresses = [t.untyped_storage().data_ptr() for t in (*made, *given)]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_share_no_memory_with_the_arguments(dtype: torch.dtype) -> None:
    case = make((1, 1, 1, 1), 1, dtype=dtype, relu=(False, False), shift=False, b=False)
    y, A, z, lse = forward(case)
    gradients = backward(case, z, lse)
    tensors = [t for t in (*case, y, A, z, lse, *gradients) if isinstance(t, Tensor)]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_autocast_changes_nothing() -> None:
    case = make((2, 8, 6, 5), 4, dtype=torch.float32)
    plain = of_backend(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = of_backend(case)
    for a, b in zip(plain, cast, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_results_are_identical_from_run_to_run(layout: str) -> None:
    case = make((6, 64, 14, 14), 4, dtype=torch.float32, layout=layout)
    for first, second in zip(of_backend(case), of_backend(case), strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_routing_in_order_is_that_of_max_pool2d() -> None:
    x = make((3, 4, 5, 7), 2, integers=True).x
    e = torch.arange(x.numel(), dtype=torch.float64).view(x.shape)
    leaf = x.clone().requires_grad_()
    pooled, winner = torch.nn.functional.max_pool2d(leaf, 3, 1, 1, return_indices=True)
    (want,) = torch.autograd.grad(pooled, leaf, e)
    assert torch.equal(torch_primitives._route_in_order(e, winner), want)


class Layer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, v: Tensor, b: Tensor, relu: bool
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs(x, scale, shift, v, b)
        y, A, z, lse = torch_backend.forward(inputs, Options(2, relu, relu, need_attention=True))
        ctx.save_for_backward(*inputs, z, lse)
        ctx.relu = relu
        return y, A

    @staticmethod
    def backward(ctx: Any, dy: Tensor, d_attention: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *inputs, z, lse = ctx.saved_tensors
        options = Options(2, ctx.relu, ctx.relu)
        return *torch_backend.backward(dy, d_attention, Inputs(*inputs), z, lse, options), None


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu: bool) -> None:
    leaves = [t.requires_grad_() for t in make((2, 4, 3, 4), 2)[:5] if t is not None]
    leaves[1].data[1] = 0.7  # the derivative jumps at scale 0
    assert torch.autograd.gradcheck(lambda *t: Layer.apply(*t, relu), leaves)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [False, True])
def test_cuda(layout: str, relu: bool) -> None:
    case = make((3, 8, 5, 6), 4, relu=(relu, relu), integers=True)
    want = of_reference(case, torch.float64)
    moved = [laid_out(t.cuda(), layout) if t is case.x else t.cuda() if isinstance(t, Tensor) else t for t in case]
    if layout == "expanded":
        want = of_reference(case._replace(x=laid_out(case.x, layout)), torch.float64)
    for name, ours, theirs in zip(NAMES, of_backend(Case(*moved)), want, strict=True):
        assert ours is not None
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-12, atol=1e-12, msg=name)
