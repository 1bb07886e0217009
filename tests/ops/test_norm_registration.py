"""What compilers and dispatch modes see of norms with batch statistics; `test_registration.py` has what forms share."""

import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from ulsam_fused.kernels.contract import Exchange, NormInputs, Options

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.authors import assert_same_step, pair, step
from ulsam_fused import backends
from ulsam_fused.torch_backend import norm_backend as torch_norm

pytestmark = pytest.mark.xdist_group("compiler")  # one process warms torch.compile up


@pytest.fixture(params=serving.FUSED)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def arguments(device: str, norms: tuple[bool, bool], dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    """x, dw, gamma1, beta1, pw, gamma2, beta2."""
    c, g = 4, 2
    sizes = [(2, c, 3, 2), (c,), (c,) if norms[0] else None, (c,), (c,), (g,) if norms[1] else None, (g,)]
    return [None if size is None else torch.randn(size, device=device, dtype=dtype) for size in sizes]


@pytest.mark.slow  # opcheck traces each operator several times
def test_opcheck(device: str, backend: str) -> None:
    """Of every backend; where a tensor is absent, of one. Fakes of the others are compared below."""
    for norms in ((True, True), (True, False), (False, True))[: 3 if backend == "torch" else 1]:
        tensors = arguments(device, norms)
        options = Options(2, True, True, need_attention=True, eps1=1e-5, eps2=1e-5, backend=backend)
        forward = (*tensors, None, None, *options)
        torch.library.opcheck(torch.ops.ulsam_fused.norm_forward.default, forward)
        y, attention, *saved = torch.ops.ulsam_fused.norm_forward(*forward)
        backward = (y, attention, *tensors, *saved, *options)
        torch.library.opcheck(torch.ops.ulsam_fused.norm_backward.default, backward)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda x: x, torch.float32),
        (lambda x: x.contiguous(memory_format=torch.channels_last), torch.float16),
        (lambda x: x.transpose(2, 3), torch.float32),
    ],
    ids=["nchw", "channels_last", "transposed"],
)
@pytest.mark.parametrize("norms", [(True, True), (True, False), (False, True)])
def test_fakes_promise_what_comes(
    device: str, backend: str, make: Any, dtype: torch.dtype, norms: tuple[bool, bool]
) -> None:
    x, *parameters = arguments(device, norms, dtype)
    tensors = [make(x), *parameters]

    def run(*tensors: Tensor | None) -> list[Tensor]:
        options = Options(2, True, False, torch.float32, norms[0], eps1=1e-5, eps2=1e-5, backend=backend)
        forward = torch.ops.ulsam_fused.norm_forward(*tensors, None, None, *options)
        y, _, *saved = forward
        backward = torch.ops.ulsam_fused.norm_backward(y, None, *tensors, *saved, *options)
        return [*forward, *backward]

    real = run(*tensors)
    with FakeTensorMode() as mode:
        fake = run(*(None if t is None else mode.from_tensor(t) for t in tensors))
    assert len(real) == len(fake) == 13
    for ours, promised in zip(real, fake, strict=True):
        assert ours.shape == promised.shape
        assert ours.stride() == promised.stride()
        assert ours.dtype == promised.dtype
        assert ours.device == promised.device


@pytest.mark.slow  # torch.compile traces, and in one case generates and compiles C++
def test_compiled_training_steps(device: str, backend: str) -> None:
    """One graph: values, gradients and running statistics of compiled and eager steps, and then of eval mode."""
    for legacy in [False, True] if backend == "torch" else [False]:
        torch._dynamo.reset()
        _, eager = pair(4, 2, backend=backend, device=device, legacy_maxpool_input=legacy)
        compiled = copy.deepcopy(eager)
        compiled.compile(fullgraph=True, backend="inductor" if backend == "torch" and not legacy else "aot_eager")
        for _ in range(2):
            x, dy = torch.randn(2, 2, 4, 4, 3, dtype=torch.float64, device=device)
            for ours, expected in zip(step(compiled, x, dy), step(eager, x, dy), strict=True):
                torch.testing.assert_close(ours - x, expected - x)
            for ours, expected in zip(compiled.parameters(), eager.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, expected.grad)
            for ours, expected in zip(compiled.buffers(), eager.buffers(), strict=True):
                torch.testing.assert_close(ours, expected)
        assert compiled.subspaces[1].bn_dws.num_batches_tracked == 2
        x = torch.randn(2, 4, 4, 3, dtype=torch.float64, device=device)
        with torch.no_grad():
            torch.testing.assert_close(compiled.eval()(x) - x, eager.eval()(x) - x)


def _identity(inputs: NormInputs, *rest: Any) -> tuple[Tensor, ...]:
    return torch_norm.norm_forward(inputs, *rest)._replace(y=inputs.x.clone())


def _frozen(inputs: NormInputs, options: Options, exchange: Exchange) -> tuple[Tensor, ...]:
    return torch_norm.norm_forward(inputs, options, Exchange())


def _other_bits(inputs: NormInputs, *rest: Any) -> tuple[Tensor, ...]:
    found = torch_norm.norm_forward(inputs, *rest)
    return found._replace(y=inputs.x + (found.y - inputs.x) * 1.001)


@pytest.mark.parametrize("wrong", [_identity, _frozen, _other_bits])
def test_a_wrong_forward_fails_the_comparison(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(4, 2)
    x, dy = torch.randn(2, 2, 4, 4, 3, dtype=torch.float64)
    assert_same_step(theirs, ours, x, dy)
    door = types.SimpleNamespace(norm_forward=wrong, norm_backward=torch_norm.norm_backward)
    monkeypatch.setattr(backends, "norm_door", lambda backend, device: door)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_step(theirs, ours, x, dy)


def test_a_backward_that_returns_dy_fails_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(4, 2)
    x, dy = torch.randn(2, 2, 4, 4, 3, dtype=torch.float64)
    original = torch_norm.norm_backward
    monkeypatch.setattr(torch_norm, "norm_backward", lambda dy, *rest: original(dy, *rest)._replace(x=dy))
    with pytest.raises(AssertionError, match="dx - dy: off by"):
        assert_same_step(theirs, ours, x, dy)


@pytest.mark.slow  # torch.compile traces
def test_modules_around_it_compile_too(device: str) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), uf.upstream.ULSAM(4, num_splits=2), nn.BatchNorm2d(4))
    model.to(device, torch.float64)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (4, 5):
        x, dy = (torch.randn(2, c, size, 3, device=device, dtype=torch.float64) for c in (3, 4))
        for ours, expected in zip(step(compiled, x, dy), step(twin, x, dy), strict=True):
            torch.testing.assert_close(ours, expected)
    for ours, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    for ours, expected in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)
