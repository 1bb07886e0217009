"""Types of the authors' form: autocast, half parameters, float32 parameters beside a half input, gradient scaling."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.authors import CANCELLED, joined, kind, norms, pair, part, step

HALVES = [torch.float16, torch.bfloat16]


def losses(module: nn.Module, x: Tensor, dy: Tensor, golden: dict[str, Tensor]) -> dict[str, float]:
    """The relative error of every gradient and of y - x."""
    y, dx = step(module, x, dy)
    found = {"y - x": y.double() - x.double(), "dx - dy": dx.double() - dy.double()}
    for name in golden:
        if name not in found:
            flat = isinstance(module, uf.ULSAM)
            gradient = module.get_parameter(name).grad if flat else joined(module, name, gradient=True)
            assert gradient is not None
            found[name] = gradient.double()
    return {name: ((found[name] - t).norm() / t.norm()).item() for name, t in golden.items()}


@pytest.mark.parametrize(
    ("dtype", "half_parameters", "training"),  # every pair of two
    [
        (torch.float16, True, True),
        (torch.float16, False, False),
        (torch.bfloat16, True, False),
        (torch.bfloat16, False, True),
    ],
)
@pytest.mark.parametrize("backend", serving.FUSED)
def test_against_float64(dtype: torch.dtype, half_parameters: bool, training: bool, backend: str, device: str) -> None:
    """Half x: errors at most twice those of the authors' module in the same type, plus its epsilon."""
    theirs, ours = pair(4, 2, device=device)
    theirs.to(dtype).double()
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.train(training)
    x, dy = (torch.randn(3, 4, 4, 5, device=device).to(dtype) for _ in range(2))
    eager = uf.reference.ULSAM(4, 2, eps=0.1).to(device)
    eager.load_state_dict(theirs.state_dict())
    names = [name for name, _ in ours.named_parameters() if kind(name) not in (*CANCELLED, "dw_weight")]
    y, dx = step(theirs, x.double(), dy.double())
    golden = {"y - x": y - x, "dx - dy": dx - dy}
    for name in names:
        gradient = joined(theirs, name, gradient=True)
        assert gradient is not None
        golden[name] = gradient
    eager.to(dtype).train(training)
    ruler = losses(eager, x, dy, golden)
    layer = uf.upstream.ULSAM(4, num_splits=2, eps=0.1, backend=backend, device=device)
    layer.load_state_dict(theirs.state_dict())
    layer.to(dtype if half_parameters else torch.float32).train(training)
    found = losses(layer, x, dy, golden)
    assert layer(x).dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())
    budgets = {name: 2 * ruler[name] + 4 * torch.finfo(dtype).eps for name in found}
    assert {name: error for name, error in found.items() if not error <= budgets[name]} == {}, budgets


def test_half_input_without_autocast_computes_where_theirs_raises() -> None:
    x = torch.randn(2, 4, 3, 3).half()
    with pytest.raises(RuntimeError):
        uf.reference.ULSAM(4, 2)(x)
    assert uf.upstream.ULSAM(4, num_splits=2)(x).dtype == torch.float16


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_cpu_autocast_gives_their_type(x_dtype: torch.dtype, training: bool) -> None:
    theirs, ours = uf.reference.ULSAM(4, 2).train(training), uf.upstream.ULSAM(4, num_splits=2).train(training)
    x = torch.randn(2, 4, 3, 3, dtype=x_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == theirs(x).dtype == x_dtype


@pytest.mark.parametrize("backend", serving.ALL)
def test_autocast_takes_parameters_of_other_types(backend: str, device: str) -> None:
    """As convolutions do; they come in float32, so errors are those of float32, and gradients keep their types."""
    dtype = torch.bfloat16
    for training in (True, False):
        golden = pair(4, 2, device=device)[1].to(dtype).double().train(training)
        layer = pair(4, 2, backend=backend, device=device)[1]
        layer.load_state_dict(golden.state_dict())
        layer.to(dtype).train(training)
        second = pair(4, 2, backend=backend, device=device)[1].to(dtype)
        ordinary = uf.unfuse(layer, inplace=False)
        x, dy = (torch.randn(3, 4, 4, 5, device=device) for _ in range(2))
        with torch.autocast(device, dtype):
            assert layer.attention(x).dtype == torch.float32
            torch.testing.assert_close(layer.attention(x).double(), golden.attention(x.double()), rtol=1e-4, atol=1e-6)
            assert second(ordinary(x)).dtype == x.dtype == ordinary(x).dtype
            y, dx = step(layer, x, dy)
            weights = torch.randn(4, device=device, dtype=dtype), torch.randn(4, device=device)
            function = uf.subspace_attention(x, *weights, 2, backend=backend)
            assert function.dtype == x.dtype
        expected, expected_dx = step(golden, x.double(), dy.double())
        torch.testing.assert_close((y - x).double(), expected - x.double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((dx - dy).double(), expected_dx - dy.double(), rtol=1e-4, atol=1e-5)
        for (name, ours), theirs in zip(layer.named_parameters(), golden.parameters(), strict=True):
            assert ours.grad is not None, name
            assert ours.grad.dtype == dtype, name
            if not name.endswith(("conv_dws.bias", "conv_point.bias", "conv_dws.weight")):
                torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.01, atol=1e-4, msg=name)
        for ours, theirs in zip(layer.buffers(), golden.buffers(), strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=0.01, atol=1e-3)
        with torch.autocast(device, dtype), pytest.raises(TypeError, match=r"torch\.float64"):  # as convolutions
            layer(x.double())
    with pytest.raises(TypeError, match=r"dw_weight must be torch.float32 as x"):
        layer(x)


def test_parameters_of_another_half_than_autocasts_are_joined(device: str) -> None:
    layer = uf.upstream.ULSAM(4, num_splits=2, backend="torch", device=device, dtype=torch.float16)
    x = torch.randn(2, 4, 3, 3, device=device, dtype=torch.float16)
    layer.eval().subspaces[0].conv_dws.weight.data = torch.ones(2, 1, 1, 1, device=device, dtype=torch.float16)
    assert layer.joins(x) is not None
    expected = layer(x)
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(layer(x), expected, check_dtype=False, rtol=0, atol=0)
        layer.flatten_parameters()
        assert layer.joins(x) is None
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16, torch.float64])
def test_cuda_autocast_gives_their_type(x_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 even for half x, the type of their softmax; our own layer keeps x's type."""
    if torch.cuda.is_available():
        theirs = uf.reference.ULSAM(4, 2).cuda().eval()
        device, mode = "cuda", contextlib.nullcontext()
    else:
        theirs, device, mode = None, "cuda", torch._subclasses.FakeTensorMode()
        for draw in ("uniform_", "kaiming_uniform_"):  # a CPU build cannot even pretend to draw there
            monkeypatch.setattr(nn.init, draw, lambda t, *_, **__: t)
    expected = torch.float64 if x_dtype == torch.float64 else torch.float32
    with mode, torch.no_grad():
        parameter_dtype = torch.promote_types(x_dtype, torch.float32)
        ours = uf.upstream.ULSAM(4, num_splits=2, device=device, dtype=parameter_dtype).eval()
        flat = uf.ULSAM(4, 2, bias=True, norm="batch", activation="relu", device=device, dtype=parameter_dtype).eval()
        x = torch.ones(2, 4, 3, 3, device=device, dtype=x_dtype)
        assert ours(x).dtype == x_dtype
        was = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", True)
        try:
            assert ours(x).dtype == expected
            assert flat(x).dtype == x_dtype
            if theirs is not None:
                assert theirs.to(parameter_dtype)(x).dtype == expected
        finally:
            torch.set_autocast_enabled("cuda", was)


@pytest.mark.parametrize("dtype", HALVES)
def test_gradient_scaler_trains(dtype: torch.dtype, device: str) -> None:
    """Loss falls, and a step whose gradients overflow is left out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), uf.upstream.ULSAM(8, num_splits=2, backend="torch"), nn.Flatten())
    model.append(nn.LazyLinear(4)).to(device)
    x, label = torch.randn(8, 3, 8, 8, device=device), torch.arange(8, device=device) % 4
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**14)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = nn.functional.cross_entropy(model(x).float(), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(loss.item())
    assert values[-1] < values[0] / 2
    before = part(model[1], "conv_dws.weight")
    with torch.autocast(device, dtype):
        loss = nn.functional.cross_entropy(model(x).float(), label) * torch.inf
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert torch.equal(part(model[1], "conv_dws.weight"), before)


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_kept_in_float32_beside_half_convolutions(dtype: torch.dtype) -> None:
    """The layout of master-weight recipes."""
    layer = uf.upstream.ULSAM(4, num_splits=2).to(dtype)
    for norm in norms(layer, ""):
        norm.float()
    x = torch.randn(3, 4, 4, 4).to(dtype)
    layer(x).sum().backward()
    assert layer.subspaces[0].bn_dws.weight.grad.dtype == torch.float32
    assert layer.subspaces[0].conv_dws.weight.grad.dtype == dtype
    mixed = uf.upstream.ULSAM(4, num_splits=2)
    for norm in norms(mixed, "bn_dws"):
        norm.to(dtype)
    with pytest.raises(TypeError, match=r"dw_norm.weight must be torch.float32"):
        mixed(x.float())
