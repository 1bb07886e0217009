"""Forward-mode AD, batches of gradients, Jacobians, Hessians: as ordinary layers, in every form and backend.

Jacobians and Hessians are batches of gradients of each element, which Triton's interpreter would take one by one.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.authors import assert_close, pair


def forms(backend: str, device: str) -> Iterator[tuple[str, uf.ULSAM, nn.Module]]:
    """Ours, and ordinary layers with the same weights."""
    paper = uf.ULSAM(4, 2, backend=backend, device=device, dtype=torch.float64)
    literal = copy.deepcopy(paper)
    literal.backend = "reference"
    yield "paper", paper, literal
    for training in (True, False):
        theirs, ours = pair(4, 2, backend=backend, device=device)
        yield f"training {training}", ours.train(training), theirs.train(training)


def tangent(layer: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """Of y - x."""
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction))).tangent
        assert found is not None
        return found.detach() - direction


def corners(layer: nn.Module, x: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """directions: [3, *x.shape]."""

    def loss(t: Tensor) -> Tensor:
        return layer(t).pow(3).sum()  # type: ignore[no-any-return]

    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    batch = torch.autograd.grad(y, leaf, directions, is_grads_batched=True, retain_graph=True)[0]
    found = {"batch of gradients": batch - directions, "tangent": tangent(layer, x, directions[0])}
    with torch.no_grad():
        found["tangent without grad mode"] = tangent(layer, x, directions[0])
    found["tangent, frozen"] = tangent(copy.deepcopy(layer).requires_grad_(False), x, directions[0])
    with forward_ad.dual_level():  # of the backward alone
        (dx,) = torch.autograd.grad(y, leaf, forward_ad.make_dual(directions[1], directions[2]))
        assert not dx.requires_grad
        found["tangent of a gradient"] = forward_ad.unpack_dual(dx).tangent - directions[2]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(leaf, directions[0])
        found["forward over reverse"] = forward_ad.unpack_dual(
            torch.autograd.grad(loss(dual), dual)[0]
        ).tangent.detach()
    if getattr(layer, "backend", "") != "triton":
        found["jacobian"] = torch.autograd.functional.jacobian(layer, x, vectorize=True)
        found["hessian"] = torch.autograd.functional.hessian(loss, x, vectorize=True)
    if not any(part.training for part in layer.modules() if isinstance(part, nn.BatchNorm2d)):
        found["torch.func.jvp"] = torch.func.jvp(layer, (x,), (directions[0],))[1] - directions[0]
        found["torch.func.hessian"] = torch.func.hessian(loss)(x)
    return found


@pytest.mark.parametrize("backend", serving.FUSED)
def test_as_ordinary_layers(backend: str, device: str) -> None:
    x = torch.randn(1, 4, 2, 3, device=device, dtype=torch.float64)
    directions = torch.randn(3, *x.shape, device=device, dtype=torch.float64)
    for form, ours, theirs in forms(backend, device):
        expected = corners(theirs, x, directions)
        for name, found in corners(ours, x, directions).items():
            assert_close(f"{form}, {name}", found, expected[name])


@pytest.mark.parametrize("backend", ["torch", serving.CPP])
def test_gradcheck_asks_for_all(backend: str, device: str) -> None:
    x = torch.randn(1, 4, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    for form, layer, _ in forms(backend, device):
        if form != "training True":  # whose running statistics differ from call to call
            assert torch.autograd.gradcheck(layer, x, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
            assert torch.autograd.gradgradcheck(
                layer, x, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True
            )


def test_training_in_a_transform_is_refused_as_a_batchnorm_refuses_it() -> None:
    """Running statistics are captured, and torch.func changes no captured tensor."""
    theirs, ours = pair(4, 2)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    for layer in (theirs, ours):
        with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
            torch.func.jvp(layer, (x,), (x,))


@pytest.mark.slow  # torch.compile traces three functions
@pytest.mark.xdist_group("compiler")
def test_compiled_transforms() -> None:
    """A compiler traces transforms through plain PyTorch; the operator would lose tangents and gradients in silence."""
    layer = uf.ULSAM(4, 2, dtype=torch.float64)
    x, direction = (torch.randn(1, 4, 2, 3, dtype=torch.float64) for _ in range(2))
    functions = {
        "jvp": lambda x: torch.func.jvp(layer, (x,), (direction,))[1] - direction,
        "grad": lambda x: torch.func.grad(lambda t: layer(t).pow(3).sum())(x),
        "forward_ad": lambda x: tangent(layer, x, direction),
    }
    with torch.no_grad():
        for name, function in functions.items():
            torch._dynamo.reset()
            assert_close(name, torch.compile(function, backend="aot_eager")(x), function(x))
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager")
        assert_close("after a call without", compiled(x), layer(x))
        assert_close("a compiled layer", tangent(compiled, x, direction), tangent(layer, x, direction))
