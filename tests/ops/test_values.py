"""Tensors whose value is more than their memory: the right value or a clear error, in every backend and form."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import ulsam_fused as uf
from tests.helpers import backends as serving
from ulsam_fused.ops import values
from ulsam_fused.ops.norm_attention import norm_attention

X, DY, DA = torch.randn(2, 4, 3, 4), torch.randn(2, 4, 3, 4), torch.randn(2, 2, 3, 4)


class Sees(Tensor):
    """A subclass that sees functions."""


class Wraps(Tensor):
    """A subclass around another tensor; it has no memory of its own, and unwraps itself for operators."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wraps":
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]
        made.inner = inner
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        tree_map = torch.utils._pytree.tree_map_only
        return function(*tree_map(Wraps, lambda t: t.inner, arguments), **tree_map(Wraps, lambda t: t.inner, options))


def negative(t: Tensor) -> Tensor:
    """t, in memory that holds -t."""
    found = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert found.is_neg()
    return found


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": negative,
    "negative and dense": lambda t: torch._neg_view(-t),  # type: ignore[attr-defined]
    "sees functions": lambda t: t.as_subclass(Sees),
    "wraps": Wraps,
}


def test_ordinary_tensors_go_to_the_backend_itself(device: str) -> None:
    """On a GPU tensors have other dispatch keys than on a CPU; an H200 found them all strange."""
    x = torch.randn(2, 4, 3, 4, device=device)
    layer = uf.upstream.ULSAM(4, num_splits=2, device=device)
    for t in (x, x.half(), x[:, :2], x.clone().requires_grad_() * 2, *layer.parameters(), *layer.buffers()):
        assert not values.unusual(t)
    assert layer.joins(x) is None
    assert layer.route(x).way == "direct"
    with torch.inference_mode():
        assert not values.unusual(x * 2)


@pytest.fixture(params=serving.FUSED)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def general(backend: str, tensors: list[Tensor], dy: Tensor, d_attention: Tensor) -> list[Tensor]:
    x, w, v, s, b = (t.detach().requires_grad_() for t in tensors)
    y, attention = uf.subspace_attention(x, w, v, 2, s, b, activation="relu", return_attention=True, backend=backend)
    return [y, attention, *torch.autograd.grad([y, attention], [x, w, v, s, b], [dy, d_attention])]


def test_general_form(backend: str, device: str) -> None:
    """Bit for bit what plain tensors give, y, A and every gradient."""
    tensors = [t.to(device) for t in (X, torch.randn(4), torch.randn(4), torch.randn(4), torch.randn(2), DY, DA)]
    expected = general(backend, tensors[:5], *tensors[5:])
    each = [{i} for i in range(len(tensors))]
    if backend == "triton":  # whose interpreter is slow; the routes are decided alike
        each = [{0, 1, 2, 3, 4}, {5, 6}]
    for name, kind in KINDS.items():
        for chosen in each:
            of_this_kind = [kind(t) if i in chosen else t for i, t in enumerate(tensors)]
            found = general(backend, of_this_kind[:5], *of_this_kind[5:])
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours, theirs), (name, chosen)


def step(layer: nn.Module, x: Tensor, dy: Tensor, gradients: bool) -> list[Tensor | None]:
    """y - x, gradients, A and buffers."""
    if not gradients:
        with torch.no_grad():
            return [layer(x) - x, layer.attention(x), *layer.buffers()]  # type: ignore[operator]
    x = x.detach().requires_grad_()
    y = layer(x)
    found = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    return [y - x, *found, layer.attention(x), *layer.buffers()]  # type: ignore[operator]


def replaced(layer: nn.Module, names: list[str], kind: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the layer with these tensors of this kind."""
    layer = copy.deepcopy(layer)
    for name in names:
        holder, _, last = name.rpartition(".")
        owner = layer.get_submodule(holder)
        t = getattr(owner, last)
        if last in owner._buffers:
            owner._buffers[last] = kind(t)
        else:
            owner._parameters[last] = nn.Parameter(kind(t.detach()))
    return layer


def test_form_with_norms(backend: str, device: str) -> None:
    """x, dy and each tensor of a layer in turn; training, folded inside the backend, and folded for gradients."""
    layer = uf.ULSAM(
        4, 2, bias=True, activation="relu", norm="batch", backend=backend, device=device, dtype=torch.float64
    )
    x, dy = X.double().to(device), DY.double().to(device)
    names = [name for name, _ in layer.named_parameters()]
    names += [name for name, t in layer.named_buffers() if t.is_floating_point()]
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "negative": KINDS["negative and dense"],
        "strided": lambda t: torch.stack([t, t], 1)[:, 0],
    }
    modes = ((True, True), (True, False), (False, True), (False, False))
    for training, gradients in modes[::3] if backend == "triton" else modes:
        layer.train(training)
        expected = step(copy.deepcopy(layer), x, dy, gradients)
        runs = {
            ("x", kind): step(copy.deepcopy(layer), KINDS[kind](x), dy, gradients) for kind in ("negative", "wraps")
        }
        if gradients:
            runs["dy", "negative"] = step(copy.deepcopy(layer), x, negative(dy), gradients)
        for chosen in [names] if backend == "triton" else [[name] for name in names]:
            for kind, make in kinds.items():
                runs[str(chosen), kind] = step(replaced(layer, chosen, make), x, dy, gradients)
        for run, found in runs.items():
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, msg=f"{run} {training} {gradients}")


@pytest.mark.parametrize("backend", serving.ALL)
def test_zeros_without_memory(backend: str, device: str) -> None:
    """As x; as a gradient; as a weight, which the Triton kernels refuse."""
    zero = torch._efficientzerotensor(X.shape, device=device)
    x, w = X.to(device).requires_grad_(), torch.randn(4, device=device)
    y = uf.subspace_attention(x, w, w, 2, backend=backend)
    assert torch.equal(torch.autograd.grad(y, x, zero)[0], torch.zeros_like(X, device=device))
    calls = [(zero, w, w), (X.to(device), torch._efficientzerotensor(4, device=device), w)]
    for call in calls:
        if backend == "triton":
            with pytest.raises(RuntimeError, match="has no memory"):
                uf.subspace_attention(*call, 2, backend=backend)
        else:
            expected = uf.subspace_attention(*(t.clone() for t in call), 2, backend=backend)
            assert torch.equal(uf.subspace_attention(*call, 2, backend=backend), expected)


@pytest.mark.parametrize("backend", serving.ALL)
def test_clear_errors(backend: str, device: str) -> None:
    """What has no dense value says so, before anything is launched."""
    x, w = X.to(device), torch.randn(4, device=device)
    nested = torch.nested.as_nested_tensor([x, x], layout=torch.jagged)
    bad: list[tuple[tuple[Tensor, Tensor], str]] = [
        ((x.to_sparse(), w), "x must be a dense tensor, got layout torch.sparse_coo"),
        ((nested, w), "x must be a dense tensor, got layout torch.jagged"),
        ((x, w.to_sparse()), "dw_weight must be a dense tensor, got layout torch.sparse_coo"),
        ((x[:, :1].expand(-1, 6, -1, -1), w), r"x must have 4 channels, as the weights have, got \[2, 6, 3, 4\]"),
    ]
    if device == "cpu":
        bad.append(((x.to_mkldnn(), w), "x must be a dense tensor, got layout torch._mkldnn"))
    for (x_like, w_like), message in bad:
        with pytest.raises((TypeError, ValueError), match=message):
            uf.subspace_attention(x_like, w_like, w, 2, backend=backend)
    with pytest.raises(TypeError, match="x must be a dense tensor, got a nested one"):
        uf.subspace_attention(torch.nested.as_nested_tensor([x[0], x[1]]), w, w, 2, backend=backend)
    fake = FakeTensorMode().from_tensor(w)
    with pytest.raises(Exception, match="convert all Tensors to FakeTensors"):
        uf.subspace_attention(x, fake, w, 2, backend=backend)


class Alone:
    """A group of one process."""

    def gather(self, moments: Tensor) -> Tensor:
        return moments.clone()

    def sum(self, t: Tensor) -> Tensor:
        return t.clone()


def test_a_shared_batch_goes_to_the_backend_itself_or_nowhere(backend: str, device: str) -> None:
    """Only a backend exchanges statistics, so values come into memory first; what cannot, raises."""
    layer = uf.ULSAM(
        4, 2, bias=True, activation="relu", norm="batch", backend=backend, device=device, dtype=torch.float64
    )
    x, dy = X.double().to(device).requires_grad_(), DY.double().to(device)
    norms = layer.dw_norm, layer.pw_norm

    def shared(x: Tensor) -> Tensor:
        return norm_attention(
            x, layer.dw_weight, layer.dw_bias, norms[0], layer.pw_weight, layer.pw_bias, norms[1], 2,
            relu=True, backend=backend, group=Alone(),
        )[0]  # fmt: skip

    y = layer(x)
    (expected,) = torch.autograd.grad(y, x, dy)
    ours = shared(negative(x))
    (found,) = torch.autograd.grad(ours, x, negative(dy), retain_graph=True)
    torch.testing.assert_close((ours - x, found - dy), (y - x, expected - dy), rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="cannot be differentiated for a batch of gradients"):
        torch.autograd.grad(ours, x, torch.stack([dy, dy]), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no transforms and no forward derivatives"):
        shared(forward_ad.make_dual(x, dy))
