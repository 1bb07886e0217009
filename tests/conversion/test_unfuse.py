"""`unfuse`: ordinary layers from fused ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ulsam_fused as uf
from tests.helpers import wild
from tests.helpers.authors import assert_close
from tests.helpers.fusing import X, assert_equal_state, fused
from tests.helpers.training import assert_same_training, tensors
from ulsam_fused import reference, upstream
from ulsam_fused.conversion.shared_weights import PlainSharedULSAM, SharedULSAM


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["ULSAM", "SubSpace"])
def test_unfused_is_the_same(kind: str, legacy: bool) -> None:
    options: dict[str, Any] = {"legacy_maxpool_input": legacy, "eps": 0.1, "momentum": 0.3}
    layer = upstream.ULSAM(12, num_splits=3, **options) if kind == "ULSAM" else upstream.SubSpace(12, **options)
    layer = wild.excited(layer)
    plain = uf.unfuse(layer, inplace=False)
    assert type(plain) is (reference.ULSAM if kind == "ULSAM" else reference.SubSpace)
    assert uf.unfuse.last_report.replaced == [("", f"reference.{kind}()")]
    assert_equal_state(plain, layer)
    assert plain.training
    assert not uf.unfuse(copy.deepcopy(layer).eval()).training
    own = uf.unfuse(copy.copy(layer))
    assert all(p is q for p, q in zip(own.parameters(), layer.parameters(), strict=True))
    again = fused(copy.deepcopy(plain))
    assert type(again) is type(layer)
    assert again.legacy_maxpool_input == legacy
    assert_equal_state(again, layer)
    assert_same_training(plain, layer, 12)


FORMS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"activation": "relu"},
    {"norm": "batch"},
    {"norm": "batch", "bias": True, "activation": "relu", "momentum": None, "eps": 0.2},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_unfused_forms(options: dict[str, Any]) -> None:
    layer = wild.excited(uf.ULSAM(12, 3, **options))
    layer.pw_weight.requires_grad_(False)
    layer.train()
    if layer.pw_norm is not None:
        layer.pw_norm.eval()
    plain = uf.unfuse(layer)
    assert type(plain) is reference.ULSAM
    part = plain.subspaces[1]
    assert not part.conv_point.weight.requires_grad
    assert part.conv_dws.weight.requires_grad
    assert (part.conv_dws.bias is None) == (not options.get("bias"))
    assert_close("y - x", plain(X) - X, layer(X) - X)
    if layer.pw_norm is not None:
        assert (part.training, part.bn_dws.training, part.bn_point.training) == (True, True, False)
        again = fused(plain)
        assert_close("y - x", again(X) - X, layer(X) - X)


def test_unfused_in_a_network() -> None:
    model = wild.excited(wild.Net(), eps=0.1).eval()
    fused(model)
    kept = copy.deepcopy(model)
    plain = uf.unfuse(model, inplace=False)
    assert_equal_state(model, kept)
    expected = {
        "attention": reference.ULSAM,
        "old": reference.ULSAM,
        "bank.0": reference.SubSpace,
        "bank.1": reference.SubSpace,
        "shared": PlainSharedULSAM,
        "again": reference.ULSAM,
    }
    assert {name: type(plain.get_submodule(name)) for name in expected} == expected
    assert plain.again is plain.old
    assert {name for name, _ in uf.unfuse.last_report.replaced} == set(expected)
    assert not any(isinstance(module, uf.ULSAM | SharedULSAM) for module in plain.modules())
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    assert_close("result", plain(x), model(x))
    assert uf.unfuse(model) is model
    assert_equal_state(model, plain)


def test_unfused_norms_stay_synchronised() -> None:
    layer = uf.sync_batchnorm(upstream.ULSAM(12, num_splits=3), open)
    norm = uf.unfuse(layer).subspaces[2].bn_point
    assert type(norm) is nn.SyncBatchNorm
    assert norm.process_group is open


def test_unfused_on_the_meta_device() -> None:
    plain = uf.unfuse(upstream.ULSAM(12, num_splits=3, device="meta", dtype=torch.float16))
    assert {t.device.type for t in tensors(plain)} == {"meta"}
    assert plain.subspaces[0].conv_dws.weight.dtype == torch.float16


def test_what_cannot_be_unfused() -> None:
    class Mine(uf.ULSAM):
        pass

    hooked = uf.ULSAM(12)
    hooked.register_forward_hook(print)
    for layer, reason in (
        (uf.ULSAM(12, out_dtype=torch.float32), "1 cannot become ordinary layers: it has out_dtype=torch.float32"),
        (Mine(12), "its class Mine is derived from ours"),
        (hooked, "it has forward hooks"),
    ):
        model = nn.Sequential(upstream.SubSpace(12), layer)
        modules = list(model.modules())
        with pytest.raises(ValueError, match=reason):
            uf.unfuse(model)
        assert list(model.modules()) == modules


@pytest.mark.parametrize("convert", [uf.fuse, uf.unfuse])
def test_no_module(convert: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        convert({})
