"""The layer: parameters, initialisation, state dict, printing, learning."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import ulsam_fused as uf


@pytest.mark.parametrize("num_splits", [1, 4, 512])
def test_parameters_as_the_paper_counts_them(num_splits: int) -> None:
    layer = uf.ULSAM(512, num_splits)
    assert sum(p.numel() for p in layer.parameters()) == 1024
    assert list(layer.state_dict()) == ["dw_weight", "pw_weight"]
    biased = uf.ULSAM(512, num_splits, bias=True)
    assert {k: tuple(v.shape) for k, v in biased.state_dict().items()} == {
        "dw_weight": (512,), "pw_weight": (512,), "dw_bias": (512,), "pw_bias": (num_splits,),
    }  # fmt: skip


def test_initialisation_is_that_of_the_convolutions() -> None:
    layer = uf.ULSAM(4096, 4, bias=True)
    group = 4096 // 4
    for parameter, convolution in (
        (layer.dw_weight, nn.Conv2d(4096, 4096, 1, groups=4096).weight),
        (layer.dw_bias, nn.Conv2d(4096, 4096, 1, groups=4096).bias),
        (layer.pw_weight, nn.Conv2d(group, 4, 1).weight),
    ):
        assert parameter.abs().max() <= convolution.abs().max() * 1.02
        torch.testing.assert_close(parameter.std(), convolution.std(), rtol=0.05, atol=0)
    assert layer.pw_bias.abs().max() <= 1 / math.sqrt(group)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"channels": 10, "num_splits": 4}, ValueError, "channels = 10 is not divisible by 4"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"channels": 8.0}, TypeError, "channels must be an integer, got 8.0"),
        ({"channels": True}, TypeError, "channels must be an integer, got True"),
        ({"channels": 8, "num_splits": None}, TypeError, "num_splits must be an integer, got None"),
        ({"channels": 8, "activation": "tanh"}, ValueError, "activation must be None"),
        ({"channels": 8, "norm": "layer"}, ValueError, "norm must be None"),
        ({"channels": 8, "out_dtype": torch.int8}, ValueError, "out_dtype must be one of"),
        ({"channels": 8, "backend": "cublas"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        uf.ULSAM(**arguments)  # type: ignore[arg-type]


def test_forward_and_attention_equal_the_function() -> None:
    layer = uf.ULSAM(6, 3, bias=True, activation="relu", dtype=torch.float64)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    y, attention = uf.reference.subspace_attention(
        x, layer.dw_weight, layer.pw_weight, 3, layer.dw_bias, layer.pw_bias, activation="relu", return_attention=True
    )
    torch.testing.assert_close(layer(x) - x, y - x)
    torch.testing.assert_close(layer.attention(x), attention)
    assert layer.attention(x).requires_grad


def test_device_dtype_and_repr() -> None:
    layer = uf.ULSAM(8, 2, bias=True, activation="relu", out_dtype=torch.float32, device="meta", dtype=torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in layer.parameters())
    assert repr(layer) == "ULSAM(8, num_splits=2, bias=True, activation='relu', out_dtype=torch.float32)"
    assert repr(uf.ULSAM(8, backend="torch")) == "ULSAM(8, num_splits=4, backend='torch')"


@pytest.mark.parametrize("norm", [None, "batch"])
def test_out_dtype_of_the_output_alone(norm: str | None) -> None:
    layer = uf.ULSAM(4, 2, norm=norm, out_dtype=torch.float32, dtype=torch.bfloat16)
    y = layer(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16))
    assert y.dtype == torch.float32
    assert (y != y.bfloat16()).any(), "stored in 16 bits before"


@pytest.mark.parametrize("norm", ["dw_norm", "pw_norm"])
@pytest.mark.parametrize("part", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_of_the_wrong_length(norm: str, part: str, training: bool) -> None:
    """A kernel would read, and write, behind the end of running statistics that are too short."""
    layer = uf.ULSAM(4, 2, norm="batch").train(training)
    wrong = torch.ones(3)
    setattr(getattr(layer, norm), part, wrong if part.startswith("running") else nn.Parameter(wrong))
    with pytest.raises(ValueError, match=rf"{norm}.{part} must have shape \[[24]\], got \[3\]"):
        layer(torch.randn(2, 4, 3, 3))


def test_running_statistics_of_integers() -> None:
    layer = uf.ULSAM(4, 2, norm="batch")
    layer.pw_norm.running_var = torch.ones(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"pw_norm.running_var must be one of float16, .*, got torch.int64"):
        layer(torch.randn(2, 4, 3, 3))


def test_state_dict_round_trip() -> None:
    first, second = uf.ULSAM(8, 2, bias=True), uf.ULSAM(8, 2, bias=True)
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_is_remembered_of_earlier_calls() -> None:
    """What is kept between calls belongs to geometries, never to a layer: parameters, types, options may change."""
    layer = uf.ULSAM(8, 2, norm="batch", bias=True, activation="relu", backend="torch").eval()
    x = torch.randn(2, 8, 5, 4)

    def agrees() -> None:
        with torch.no_grad():
            y = layer(x)
            expected = copy.deepcopy(layer)
            expected.backend = "reference"
            torch.testing.assert_close(y - x, expected(x) - x)

    def load() -> None:
        layer.load_state_dict({name: t + 1 for name, t in layer.state_dict().items()})

    def replace() -> None:
        layer.dw_weight = nn.Parameter(torch.randn(8, dtype=x.dtype))
        layer.dw_norm = nn.BatchNorm2d(8, 1e-2, dtype=x.dtype).eval()

    agrees()
    for change in (load, replace, layer.double, lambda: setattr(layer, "activation", None)):
        change()
        x = x.to(layer.dw_weight.dtype)
        agrees()
    layer = pickle.loads(pickle.dumps(layer))
    agrees()


def test_parametrised_and_pruned() -> None:
    """Then a parameter is computed by the attribute, and not in the module's table."""
    x = torch.randn(2, 4, 3, 3)
    layer = uf.ULSAM(4, 2)
    pruned = prune.l1_unstructured(copy.deepcopy(layer), "dw_weight", amount=2)
    torch.testing.assert_close(pruned(x), uf.subspace_attention(x, pruned.dw_weight, layer.pw_weight, 2))
    assert (pruned.dw_weight == 0).sum() == 2
    parametrize.register_parametrization(layer, "pw_weight", nn.Tanh())
    torch.testing.assert_close(layer(x), uf.subspace_attention(x, layer.dw_weight, layer.pw_weight, 2))
    normed = uf.ULSAM(4, 2, norm="batch").eval()
    plain = copy.deepcopy(normed)
    parametrize.register_parametrization(normed.dw_norm, "weight", nn.Tanh())
    nn.init.constant_(plain.dw_norm.weight, math.tanh(1))
    torch.testing.assert_close(normed.attention(x), plain.attention(x))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_learns_to_look_at_a_spot(backend: str) -> None:
    """Twenty steps raise the attention where a bright spot is, from the first step on."""
    layer = uf.ULSAM(8, 2, backend=backend)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.rand(4, 8, 9, 9)
    x[:, :, 3, 5] += 2
    losses = []
    for _ in range(20):
        loss = -layer.attention(x)[:, :, 2:5, 4:7].sum((2, 3)).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < losses[0] - 0.5
