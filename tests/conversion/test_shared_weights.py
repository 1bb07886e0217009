"""ULSAM with weights shared by all subspaces: one norm, called once per subspace by ordinary layers."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers import wild
from tests.helpers.authors import assert_close
from tests.helpers.training import assert_same_training
from ulsam_fused.conversion.shared_weights import PlainSharedULSAM, SharedULSAM


def pair(device: str = "cpu", backend: str = "auto", **options: Any) -> tuple[nn.Module, SharedULSAM]:
    theirs = wild.excited(wild.SharedULSAM(6, 3, **options), eps=0.1).to(device)
    ours = uf.fuse(theirs, inplace=False)
    assert type(ours) is SharedULSAM
    ours.backend = backend
    return theirs, ours


@pytest.mark.parametrize("backend", serving.ALL)
@pytest.mark.parametrize("legacy", [False, True], ids=["", "legacy"])
def test_training_and_then_eval(backend: str, legacy: bool, device: str) -> None:
    steps = 1 if backend == "triton" and device == "cpu" else 3  # Triton's interpreter is slow
    theirs, ours = pair(device, backend, legacy=legacy)
    assert_same_training(theirs, ours, 6, steps, device=device)
    assert int(ours.dws_bn.num_batches_tracked) == int(theirs.dws_bn.num_batches_tracked) == 3 * steps


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.0}, {"bias": False}], ids=str)
def test_options(options: dict[str, Any]) -> None:
    assert_same_training(*pair(**options), 6)


@pytest.mark.parametrize("frozen", [("dws_bn",), ("point_bn",), ("dws_bn", "point_bn")], ids="+".join)
def test_frozen_statistics(frozen: tuple[str, ...]) -> None:
    theirs, ours = pair()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for module in (theirs, ours):
        module(x)  # statistics that leave no ReLU dead
        for name in frozen:
            module.get_submodule(name).eval()
    assert_same_training(theirs, ours, 6)


def test_statistics_that_are_not_tracked() -> None:
    theirs = wild.SharedULSAM(6, 3)
    theirs.dws_bn = nn.BatchNorm2d(2, track_running_stats=False)
    theirs = wild.excited(theirs, eps=0.1)
    assert_same_training(theirs, uf.fuse(theirs, inplace=False), 6)
    theirs, ours = pair()
    for module in (theirs, ours):
        module.point_bn.track_running_stats = False
    assert_same_training(theirs, ours, 6)


def test_an_empty_batch_counts_and_changes_nothing_else() -> None:
    _, ours = pair()
    before = copy.deepcopy(ours.state_dict())
    assert ours(torch.zeros(0, 6, 5, 4, dtype=torch.float64)).shape == (0, 6, 5, 4)
    for key, t in ours.state_dict().items():
        expected = before[key] + 3 if key.endswith("num_batches_tracked") else before[key]
        assert torch.equal(t, expected), key


def test_attention() -> None:
    _, ours = pair()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for training in (True, False):
        ours.train(training)
        before = copy.deepcopy(ours.state_dict())
        attention = ours.attention(x)
        assert all(torch.equal(t, before[key]) for key, t in ours.state_dict().items())
        assert attention.requires_grad
        assert attention.shape == (2, 3, 5, 4)
        assert_close("y - x", ours(x) - x, x * attention.repeat_interleave(2, dim=1))


def test_float16_input() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 6, 5, 4).half()
    y = ours.float().eval()(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, theirs.float().eval()(x.float()).half(), rtol=2e-3, atol=2e-3)
    assert not torch.equal(y, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA autocast needs CUDA")
def test_type_of_the_output_under_autocast() -> None:
    _, ours = pair("cuda")
    x = torch.randn(2, 6, 5, 4, device="cuda", dtype=torch.float16)
    ours.float()
    assert ours(x).dtype == torch.float16
    with torch.autocast("cuda"):
        assert ours(x).dtype == torch.float32


def test_plain_and_back() -> None:
    theirs, ours = pair(legacy=True)
    kept = ours.state_dict()
    assert not uf.unfuse(copy.deepcopy(ours).eval()).training
    plain = uf.unfuse(ours)
    assert type(plain) is PlainSharedULSAM
    again = uf.fuse(plain, inplace=False)
    assert type(again) is SharedULSAM
    assert again.legacy_maxpool_input
    assert {key: id(t) for key, t in plain.state_dict(keep_vars=True).items()} == {
        key: id(t) for key, t in ours.state_dict(keep_vars=True).items()
    }
    assert all(torch.equal(t, kept[key]) for key, t in again.state_dict().items())
    assert_same_training(theirs, plain, 6)


def test_without_activation() -> None:
    layers = tuple(pair()[1].layers)
    plain = PlainSharedULSAM(copy.deepcopy(layers), 3, activation=None)
    ours = uf.fuse(plain, inplace=False)
    assert ours.activation is None
    assert_same_training(plain, ours, 6)


def test_state_dict_and_repr() -> None:
    theirs, ours = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(wild.SharedULSAM(6, 3).state_dict())
    assert repr(ours).startswith("SharedULSAM(\n  6, num_splits=3, activation='relu'\n  (dws_conv)")


def test_layers_inside_sequentials_get_the_known_names() -> None:
    class Nested(wild.NestedSubSpace):
        num_splits = 0

        def __init__(self) -> None:
            super().__init__(2)
            self.num_splits = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([super(Nested, self).forward(chunk) for chunk in x.chunk(3, dim=1)], dim=1)

    theirs = wild.excited(Nested(), eps=0.1)
    ours = uf.fuse(theirs, inplace=False)
    assert type(ours) is SharedULSAM
    assert "other names" in uf.fuse.last_report.replaced[0][1]
    assert next(iter(ours.state_dict())) == "dws_conv.weight"
    assert_same_training(theirs, ours, 6)


def test_bad_arguments() -> None:
    layers = pair()[1].layers
    with pytest.raises(TypeError, match="num_splits must be an integer"):
        SharedULSAM(layers, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation must be None"):
        SharedULSAM(layers, 3, activation="tanh")
    with pytest.raises(ValueError, match="backend must be one of"):
        SharedULSAM(layers, 3, backend="cublas")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SharedULSAM(layers, 3).train()(torch.zeros(1, 6, 1, 1, dtype=torch.float64))
