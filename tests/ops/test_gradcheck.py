"""First and second derivatives of the public function against finite differences, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ulsam_fused as uf
from tests.helpers import backends as serving


# finite differences must not cross a tie of the maximum or the kink of a ReLU: all x are 0.1 apart, and every u and
# every logit at least 0.01 from 0
def inputs(shape: tuple[int, int, int, int], splits: int, device: str) -> list[Tensor]:
    n, c, h, w = shape
    x = (torch.randperm(n * c * h * w, dtype=torch.float64) * 0.1 - 1).view(shape)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(c // 2)
    parameters = [
        signs * (0.5 + torch.rand(c, dtype=torch.float64)),  # scale
        0.5 + torch.rand(c, dtype=torch.float64),  # v
        0.033 + torch.rand(c, dtype=torch.float64),  # shift
        torch.full((splits,), 0.2, dtype=torch.float64),  # b
    ]
    return [t.to(device).requires_grad_() for t in (x, *parameters)]


def function(backend: str, splits: int, activation: str | None, y_alone: bool) -> Any:
    def call(x: Tensor, scale: Tensor, v: Tensor, shift: Tensor, b: Tensor) -> Any:
        return uf.subspace_attention(
            x, scale, v, splits, shift, b, activation=activation, return_attention=not y_alone, backend=backend
        )

    return call


@pytest.mark.parametrize(("activation", "y_alone"), [(None, False), ("relu", True)])
@pytest.mark.parametrize("backend", serving.ALL)
def test_first_and_second_derivatives(backend: str, activation: str | None, y_alone: bool, device: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="needs Triton")
    # hundreds of calls, and Triton's interpreter takes 0.1 s for one
    shape, splits = ((1, 2, 3, 2), 1) if backend == "triton" else ((2, 4, 3, 4), 2)
    call = function(backend, splits, activation, y_alone)
    assert torch.autograd.gradcheck(call, inputs(shape, splits, device), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs(shape, splits, device), fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_every_entry_of_the_jacobian(backend: str) -> None:
    call = function(backend, 2, "relu", y_alone=False)
    assert torch.autograd.gradcheck(call, inputs((1, 4, 3, 3), 2, "cpu"), check_undefined_grad=True)


def test_a_graph_of_the_gradient_changes_no_gradient() -> None:
    """With create_graph the gradient comes from the reference, with the same activations."""
    x, scale, v, shift = (
        torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((2, 4, 5, 6), (4,), (4,), (4,))
    )
    y = uf.subspace_attention(x, scale, 3 * v, 2, shift, activation="relu", backend="torch")
    loss = (y - x).square().sum()
    plain = torch.autograd.grad(loss, (x, scale, v, shift), retain_graph=True)
    graphed = torch.autograd.grad(loss, (x, scale, v, shift), create_graph=True)
    for one, other in zip(plain, graphed, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-9, atol=1e-12)
