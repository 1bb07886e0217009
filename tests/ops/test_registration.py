"""What compilers, export and dispatch modes see of the operator: schemas, fakes, one graph for all map sizes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from ulsam_fused.kernels.contract import Options

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.authors import pair
from ulsam_fused.ops import autograd, norm_autograd

pytestmark = pytest.mark.xdist_group("compiler")  # one process warms torch.compile up


@pytest.fixture(params=serving.FUSED)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["paper", "authors"])
def layer(request: pytest.FixtureRequest, backend: str, device: str) -> uf.ULSAM:
    """Both forms, in training mode."""
    if request.param == "authors":
        return pair(4, 2, backend=backend, device=device)[1]
    return uf.ULSAM(4, 2, backend=backend, device=device, dtype=torch.float64)


def random(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.float64)


def parameters(device: str, channels: int = 4, num_splits: int = 2) -> list[Tensor]:
    """scale, shift, v, b."""
    sizes = (channels, channels, channels, num_splits)
    return [torch.randn(size, device=device, requires_grad=True) for size in sizes]


def call(x: Tensor, scale: Tensor, shift: Tensor, v: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return uf.subspace_attention(x, scale, v, 2, shift, b, activation="relu", return_attention=True, backend=backend)


def gradients(function: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """Values and gradients, through y and A with weights that tell pixels apart."""
    y, attention = function(*inputs)
    weights = torch.linspace(-1, 1, attention.numel(), device=attention.device).view_as(attention)
    loss = (y * y).sum() + (attention * weights).sum()
    return [y.detach(), attention.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.slow  # opcheck traces each operator several times
def test_opcheck(device: str, backend: str) -> None:
    x = torch.randn(2, 4, 3, 2, device=device)
    scale, shift, v, b = (p.detach() for p in parameters(device))
    for s, t, arriving in ((shift, b, "dy"), (None, None, "d_attention")):
        options = Options(2, True, True, need_attention=True, backend=backend)
        forward = (x, scale, s, v, t, *options)
        torch.library.opcheck(torch.ops.ulsam_fused.forward.default, forward)
        y, attention, z, lse = torch.ops.ulsam_fused.forward(*forward)
        gradients = (y, None) if arriving == "dy" else (None, attention)
        backward = (*gradients, x, scale, s, v, t, z, lse, *options)
        torch.library.opcheck(torch.ops.ulsam_fused.backward.default, backward)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda x: x, torch.float32),
        (lambda x: x.contiguous(memory_format=torch.channels_last), torch.float16),
        (lambda x: x.transpose(2, 3), torch.float32),
        (lambda x: x[:, :, ::2], torch.float16),
        (lambda x: x[:1].expand(3, -1, -1, -1), torch.float32),
    ],
    ids=["nchw", "channels_last", "transposed", "strided", "expanded"],
)
@pytest.mark.parametrize("need", [(True, True), (False, False)], ids=["all", "y"])
def test_fakes_promise_what_comes(
    device: str, backend: str, make: Any, dtype: torch.dtype, need: tuple[bool, bool]
) -> None:
    x = make(torch.randn(2, 4, 4, 3, device=device, dtype=dtype))
    scale, shift, v, b = (p.detach() for p in parameters(device))

    def run(*tensors: Tensor) -> list[Tensor]:
        x, scale, shift, v, b = tensors
        options = Options(2, True, False, torch.float32, need[0], need[1], backend=backend)
        outputs = torch.ops.ulsam_fused.forward(x, scale, shift, v, b, *options)
        y, attention, z, lse = outputs
        if not need[1]:
            return list(outputs)
        gradients = torch.ops.ulsam_fused.backward(y, attention, x, scale, shift, v, b, z, lse, *options)
        return [*outputs, *gradients]

    real = run(x, scale, shift, v, b)
    with FakeTensorMode() as mode:
        fake = run(*(mode.from_tensor(t) for t in (x, scale, shift, v, b)))
    assert len(real) == len(fake) == (9 if need[1] else 4)
    for ours, promised in zip(real, fake, strict=True):
        assert ours.shape == promised.shape
        assert ours.stride() == promised.stride()
        assert ours.dtype == promised.dtype
        assert ours.device == promised.device


@pytest.mark.slow  # torch.compile traces, and for one backend generates and compiles C++
def test_compiles_to_one_graph_over_map_sizes(device: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # a second, in this test alone

    monkeypatch.setenv("CI", "true")  # where Inductor checks more of an operator
    torch._dynamo.reset()
    counting = CompileCounterWithBackend("inductor" if backend == "torch" else "aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counting)
    scale_etc = parameters(device)
    for h, w in ((3, 5), (5, 5), (6, 3)):
        inputs = [torch.randn(2, 4, h, w, device=device, requires_grad=True), *scale_etc]
        eager = gradients(lambda *t: call(*t, backend), inputs)
        for ours, expected in zip(gradients(lambda *t: compiled(*t, backend), inputs), eager, strict=True):
            assert torch.equal(ours, expected)
    assert counting.frame_count == 1


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_dynamic_shapes(device: str, layer: uf.ULSAM, strict: bool) -> None:
    layer.eval()
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(layer, (random(device, 2, 4, 5, 6),), dynamic_shapes={"x": dims}, strict=strict)
    assert "ulsam_fused.forward" in str(program.graph_module.print_readable(print_output=False))
    x = random(device, 3, 4, 4, 3)
    torch.testing.assert_close(program.module()(x) - x, layer(x) - x)


def test_functional_transforms(device: str, layer: uf.ULSAM) -> None:
    """Per-sample results and gradients, through plain PyTorch."""
    layer.eval()
    x = random(device, 3, 2, 4, 4, 3)
    for ours, one in zip(torch.func.vmap(layer)(x), x, strict=True):
        torch.testing.assert_close(ours - one, layer(one) - one)
    gradient = torch.func.grad(lambda t: layer(t).square().sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    layer(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_meta_and_fake_tensors_of_a_gpu() -> None:
    layer = uf.ULSAM(4, 2, device="meta")
    assert layer(torch.empty(2, 4, 5, 5, device="meta")).is_meta
    with FakeTensorMode():
        weights = (torch.empty(4, device="cuda"), torch.empty(4, device="cuda"))
        y = uf.subspace_attention(torch.empty(2, 4, 5, 5, device="cuda"), *weights, 2)
    assert y.device.type == "cuda"


def test_checkpointing_and_deepcopy(device: str, layer: uf.ULSAM) -> None:
    twin = copy.deepcopy(layer)
    x = random(device, 2, 4, 3, 4).requires_grad_()
    plain = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    again = torch.autograd.grad(checkpoint(twin, x, use_reentrant=False).square().sum(), [x, *twin.parameters()])
    assert all(torch.equal(ours, expected) for ours, expected in zip(again, plain, strict=True))


def test_no_function_without_gradient(device: str, layer: uf.ULSAM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the autograd.Function was called")

    monkeypatch.setattr(autograd.SubspaceAttention, "apply", fail)
    monkeypatch.setattr(norm_autograd.NormalizedSubspaceAttention, "apply", fail)
    x = random(device, 2, 4, 3, 3)
    with torch.no_grad():
        assert not layer(x).requires_grad
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    with pytest.raises(AssertionError, match="was called"):
        layer(x.requires_grad_())


def test_plain_eager_calls_skip_the_dispatcher(device: str, backend: str) -> None:
    layer, x = uf.ULSAM(4, 2, backend=backend).to(device), torch.randn(1, 4, 3, 3, device=device)
    w, v = layer.dw_weight, layer.pw_weight
    rest = (None, v, None, *Options(2, False, False, need_lse=False, backend=backend))
    seen = []
    for call in (lambda: layer(x), lambda: torch.ops.ulsam_fused.forward(x, w, *rest)):
        with torch.no_grad(), torch.profiler.profile() as profile:
            call()
        seen.append("ulsam_fused::forward" in {event.name for event in profile.events()})
    assert seen == [False, True]


def test_only_the_gradients_asked_for(device: str, layer: uf.ULSAM) -> None:
    for of_x in (True, False):
        layer.requires_grad_(not of_x).zero_grad()
        x = random(device, 2, 4, 3, 4).requires_grad_(of_x)
        layer(x).square().sum().backward()
        assert (x.grad is not None) == of_x
        assert all((p.grad is None) == of_x for p in layer.parameters())


def test_second_derivative_through_part_of_the_inputs(device: str, backend: str) -> None:
    """Also through a checkpoint, which may be looked at once."""
    layer = uf.ULSAM(4, 2, backend=backend, device=device, dtype=torch.float64)
    x = random(device, 1, 4, 3, 3).requires_grad_()

    def penalty(y: Tensor) -> tuple[Tensor, ...]:
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, layer.dw_weight])

    ours, ours_again = penalty(layer(x)), penalty(checkpoint(layer, x, use_reentrant=False))
    layer.backend = "reference"
    expected = penalty(layer(x))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(ours_again, expected)
