"""The authors' module, fused, against the authors' module as ordinary layers, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.authors import (
    CANCELLED,
    assert_close,
    assert_same_state,
    assert_same_step,
    kind,
    norms,
    pair,
    part,
    step,
)
from tests.helpers.layouts import STRIDED, channels_last, one_number

SHAPES = [(2, 6, 3, 4, 2), (3, 2, 3, 3, 2), (2, 3, 4, 5, 1)]  # G of 3, 1 and 3; g = C


@pytest.fixture(params=serving.ALL)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def data(n: int, c: int, h: int, w: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    x, dy = torch.randn(2, n, c, h, w, dtype=torch.float64).to(device)
    return 2 * x + 1, dy


@pytest.mark.parametrize(("shape", "legacy"), [*((shape, False) for shape in SHAPES), (SHAPES[0], True)], ids=str)
def test_training_and_then_eval(backend: str, shape: tuple[int, ...], legacy: bool, device: str) -> None:
    n, c, h, w, g = shape
    theirs, ours = pair(c, g, backend=backend, device=device, legacy_maxpool_input=legacy)
    for i in range(2):
        x, dy = data(n, c, h, w, device)
        assert_same_step(theirs, ours, x if i else channels_last(x), dy)
    assert all(norm.num_batches_tracked == 2 for norm in norms(ours, "bn_dws"))
    theirs.eval()
    ours.eval()
    assert_same_step(theirs, ours, *data(n, c, h, w, device))
    with torch.no_grad():
        x, _ = data(n, c, h, w, device)
        assert_close("y - x in eval", ours(x) - x, theirs(x) - x)
        ours.requires_grad_(False)
        assert_close("A", ours.attention(x), attention_of(theirs, x, g))


def attention_of(theirs: nn.Module, x: Tensor, num_splits: int) -> Tensor:
    """A = (y - x) / x, where x is not 0."""
    ones = x.unflatten(1, (num_splits, -1))[:, :, 0]
    return (theirs(x) - x).unflatten(1, (num_splits, -1))[:, :, 0] / ones


@pytest.mark.parametrize("frozen", [("bn_dws",), ("bn_point",), ("bn_dws", "bn_point")], ids="+".join)
def test_frozen_statistics(backend: str, frozen: tuple[str, ...], device: str) -> None:
    """Norms put into eval mode inside a training model, as detection code does; affine parameters still learn."""
    theirs, ours = pair(6, 2, backend=backend, device=device)
    assert_same_step(theirs, ours, *data(2, 6, 4, 3, device))
    for name in frozen:
        for norm in (*norms(theirs, name), *norms(ours, name)):
            norm.eval()
    before = {name: part(ours, f"{name}.running_mean") for name in ("bn_dws", "bn_point")}
    assert_same_step(theirs, ours, *data(2, 6, 4, 3, device))
    for name, mean in before.items():
        assert torch.equal(mean, part(ours, f"{name}.running_mean")) == (name in frozen)


@pytest.mark.parametrize("legacy", [False, True], ids=["", "legacy"])
def test_plain_average_over_batches(backend: str, legacy: bool, device: str) -> None:
    theirs, ours = pair(4, 2, backend=backend, device=device, momentum=None, legacy_maxpool_input=legacy)
    for _ in range(3):
        assert_same_step(theirs, ours, *data(1, 4, 3, 3, device))


def test_without_running_statistics(backend: str, device: str) -> None:
    """Then the batch's are used in eval mode too."""
    theirs, ours = pair(4, 2, backend=backend, device=device)
    for norm in (*norms(theirs, ""), *norms(ours, "")):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    assert_same_step(theirs, ours, *data(2, 4, 3, 3, device))
    theirs.eval()
    ours.eval()
    assert_same_step(theirs, ours, *data(2, 4, 3, 3, device))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_their_eps_and_eval_mode_before_any_batch(backend: str, device: str) -> None:
    theirs, ours = pair(4, 2, backend=backend, device=device, eps=1e-5)
    assert_same_step(theirs.eval(), ours.eval(), *data(2, 4, 3, 3, device))
    assert_same_step(theirs.train(), ours.train(), *data(2, 4, 3, 3, device))


def test_ties(backend: str, device: str) -> None:
    theirs, ours = pair(4, 2, backend=backend, device=device)
    x, dy = data(2, 4, 4, 5, device)
    assert_same_step(theirs, ours, x.clamp(0, 1).round(), dy)


def test_constant_channels(backend: str, device: str) -> None:
    """Variance 0: eps alone keeps the norm finite, and every window is a tie."""
    theirs, ours = pair(4, 2, backend=backend, device=device)
    x, dy = data(2, 4, 4, 3, device)
    x[:, 1] = 0.5
    assert_same_step(theirs, ours, x, dy)
    x[:] = 3.0
    assert_same_step(theirs, ours, x, dy)


@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
def test_any_strides(layout: Any) -> None:
    theirs, ours = pair(6, 2)
    x, dy = data(3, 6, 5, 4)
    assert_same_step(theirs, ours, layout(x), dy)
    assert_same_step(theirs, ours, x, one_number(dy) if layout is one_number else layout(dy))


def test_one_value_per_channel_raises_what_pytorch_raises(backend: str, device: str) -> None:
    theirs, ours = pair(4, 4, backend=backend, device=device)
    x, _ = data(1, 4, 1, 1, device)
    messages = []
    for module in (theirs, ours):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input") as info:
            module(x)
        messages.append(str(info.value).split(", got")[0])
    assert messages[0] == messages[1]
    assert torch.isfinite(ours.eval()(x)).all()


def test_an_empty_batch(backend: str, device: str) -> None:
    """As torch.nn.BatchNorm2d: counted, nothing else changes, and every gradient is 0."""
    _, ours = pair(4, 2, backend=backend, device=device)
    before = {name: t.clone() for name, t in ours.named_buffers()}
    y, dx = step(ours, *data(0, 4, 3, 3, device))
    assert y.shape == dx.shape == (0, 4, 3, 3)
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())
    for name, t in ours.named_buffers():
        assert torch.equal(t, before[name] + name.endswith("num_batches_tracked"))


def test_three_steps_of_sgd(backend: str, device: str) -> None:
    theirs, ours = pair(4, 2, backend=backend, device=device)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01) for m in (theirs, ours)]
    start = part(ours, "conv_point.weight")
    for _ in range(3):
        assert_same_step(theirs, ours, *data(2, 4, 3, 3, device))
        for optimizer in optimizers:
            optimizer.step()
    assert_same_state(theirs, ours)
    assert not torch.equal(start, part(ours, "conv_point.weight"))


def test_three_steps_of_adam(backend: str, device: str) -> None:
    """Adam scales the rounding noise that their biases get up to steps of lr, so biases are compared absolutely.

    It divides by |g| + 1e-8: where a gradient is 0 but for a rounding of 1e-14, lr * 1e-6 is what two may differ by.
    """
    theirs, ours = pair(4, 2, backend=backend, device=device)
    lr = 1e-3
    optimizers = [torch.optim.Adam(m.parameters(), lr=lr) for m in (theirs, ours)]
    start = part(ours, "bn_dws.weight")
    for _ in range(3):
        x, dy = data(2, 4, 4, 3, device)
        for module in (theirs, ours):
            step(module, x, dy)
        for optimizer in optimizers:
            optimizer.step()
    drift = 2 * 3 * lr  # of 4 values each
    assert_same_state(
        theirs, ours, lr * 1e-6, dw_bias=drift, pw_bias=drift, dw_norm_running_mean=drift, pw_norm_running_mean=drift
    )
    assert (part(ours, "bn_dws.weight") - start).abs().max() > lr


def test_maps_in_training_leave_the_statistics_alone(backend: str, device: str) -> None:
    theirs, ours = pair(4, 2, backend=backend, device=device)
    x, _ = data(2, 4, 3, 3, device)
    before = {name: t.clone() for name, t in ours.named_buffers()}
    maps = ours.attention(x)
    assert all(torch.equal(t, before[name]) for name, t in ours.named_buffers())
    assert_close("A", maps.detach(), attention_of(theirs, x, 2).detach())
    assert maps.requires_grad


def test_same_bits_again(backend: str, device: str) -> None:
    x, dy = (t.float() for t in data(3, 6, 5, 4, device))
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        _, ours = pair(6, 2, backend=backend, device=device)
        ours.float()
        runs.append([*step(ours, x, dy), *(p.grad for p in ours.parameters()), *ours.buffers()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_statistics_of_a_large_mean(backend: str, device: str) -> None:
    """x of mean 1000 and deviation 1, beyond what squares can hold in float16 and what E[x^2] - E[x]^2 keeps at all."""
    for dtype in (torch.float16, torch.float32):
        theirs, ours = pair(4, 2, backend=backend, device=device)
        x = (1000 + torch.randn(4, 4, 5, 5, dtype=torch.float64)).to(device, dtype)
        ours.float()(x)
        theirs(x.double())
        for name in ("bn_dws.running_mean", "bn_dws.running_var"):
            torch.testing.assert_close(part(ours, name).double(), part(theirs, name), rtol=2e-3, atol=0)
        assert (part(ours, "bn_dws.running_var") > 0.1 * part(ours, "conv_dws.weight").square()).all()


def test_gradcheck(backend: str, device: str) -> None:
    """First and second derivatives of the operator with batch statistics, in x and in all that has a gradient."""
    n, c, g, h, w = (1, 2, 1, 3, 2) if backend == "triton" else (2, 4, 2, 3, 4)
    _, ours = pair(c, g, backend=backend, device=device)
    with torch.no_grad():  # nothing near a tie or a kink
        for norm, gammas in zip(norms(ours, "bn_dws"), torch.linspace(0.5, 1, c).chunk(g), strict=True):
            norm.weight.copy_(gammas)
            norm.bias.fill_(3.0)
        for norm in norms(ours, "bn_point"):
            norm.weight.fill_(1.5)
            norm.bias.fill_(4.0)
    x = (torch.randperm(n * c * h * w, dtype=torch.float64) * 0.1 - 1).view(n, c, h, w).to(device).requires_grad_()
    names, values = zip(*[(k, p) for k, p in ours.named_parameters() if kind(k) not in CANCELLED], strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x,)) - x

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    if backend != "triton":
        assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


def test_constructors() -> None:
    layer = uf.upstream.ULSAM(8, 0, "any", None, 4)
    assert (layer.nin, layer.nout, layer.h, layer.w, layer.num_splits) == (8, 0, "any", None, 4)
    assert uf.upstream.ULSAM(8, nout=8, num_splits=2).num_splits == 2
    with pytest.raises(TypeError, match="num_splits: by name"):
        uf.upstream.ULSAM(8, 4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="not divisible by 3"):
        uf.upstream.ULSAM(8, 8, 7, 7, 3)
    assert uf.upstream.SubSpace(5).num_splits == 1
    assert "legacy_maxpool_input=True" in repr(uf.upstream.ULSAM(8, num_splits=4, legacy_maxpool_input=True))


def test_parameters_and_initialisation_are_theirs() -> None:
    """To the bit: the same random numbers are drawn in the same order."""
    torch.manual_seed(3)
    theirs = uf.reference.ULSAM(512, 4)
    torch.manual_seed(3)
    ours = uf.upstream.ULSAM(512, num_splits=4)
    assert [(name, t.shape) for name, t in ours.named_parameters()] == [
        (name, t.shape) for name, t in theirs.named_parameters()
    ]
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert {(norm.momentum, norm.eps) for norm in norms(ours, "")} == {(0.9, 1e-5)}


def test_rules_for_norms_find_them() -> None:
    """The idioms of weight decay and of frozen norms go by the type of a module."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), uf.upstream.ULSAM(8, num_splits=2))
    exempt = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    assert [tuple(p.shape) for p in exempt] == [(4,), (4,), (1,), (1,)] * 2


def test_our_own_constructor_is_the_same_thing() -> None:
    theirs, ours = pair(6, 2)
    same = uf.ULSAM(
        6, 2, bias=True, norm="batch", activation="relu", eps=0.1, dtype=torch.float64, backend=ours.backend
    )
    same.load_state_dict(theirs.state_dict())
    assert (same.dw_norm.momentum, same.pw_norm.eps) == (0.9, 0.1)
    x, dy = data(2, 6, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(step(ours, x, dy), step(same, x, dy), strict=True))
    assert "subspaces.0.conv_dws.weight" not in same.state_dict()


@pytest.mark.parametrize(("bias", "activation"), [(False, None), (True, None), (False, "relu")])
def test_norms_in_other_forms(bias: bool, activation: str | None, backend: str, device: str) -> None:
    options = {"bias": bias, "activation": activation}
    theirs = uf.reference.ULSAM(4, 2, **options).to(device, torch.float64)
    ours = uf.ULSAM(4, 2, norm="batch", backend=backend, device=device, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    assert_same_step(theirs, ours, *data(2, 4, 4, 3, device))
    assert_same_step(theirs.eval(), ours.eval(), *data(2, 4, 4, 3, device))
