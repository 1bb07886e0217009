"""Which way a call takes is decided once, and `explain` says what then happens."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import ulsam_fused as uf
from ulsam_fused.conversion.pattern import Layers
from ulsam_fused.conversion.shared_weights import SharedULSAM
from ulsam_fused.ops import registration
from ulsam_fused.ops.routes import Route, norm_route

X = torch.randn(2, 4, 3, 5)


def authors(**options: Any) -> uf.upstream.ULSAM:
    return uf.upstream.ULSAM(4, num_splits=2, **options)


def shared() -> SharedULSAM:
    layers = Layers(nn.Conv2d(2, 2, 1, groups=2), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1), nn.BatchNorm2d(1))
    return SharedULSAM(layers, 2)


def dw_frozen() -> uf.upstream.ULSAM:
    layer = authors()
    for subspace in layer.subspaces:
        subspace.get_submodule("bn_dws").eval()
    return layer


@pytest.mark.parametrize(
    ("layer", "route"),
    [
        (uf.ULSAM(4, 2), Route("direct", "auto")),
        (uf.ULSAM(4, 2, backend="reference"), Route("reference", "reference")),
        (authors(), Route("direct", "auto", "batch", "batch")),
        (authors().eval(), Route("direct", "auto", "fixed", "fixed")),
        (authors().eval().requires_grad_(False), Route("direct", "auto", "fixed", "fixed", folded=True)),
        (authors(legacy_maxpool_input=True), Route("direct", "auto", "fixed", "batch")),
        (dw_frozen(), Route("direct", "auto", "fixed", "batch")),
        (shared(), Route("direct", "auto", "batch", "batch")),
        (shared().eval().requires_grad_(False), Route("direct", "auto", "fixed", "fixed", folded=True)),
    ],
)
def test_routes(layer: Any, route: Route) -> None:
    assert layer.route(X) == route


def test_without_gradients_fixed_norms_fold_inside_the_backend() -> None:
    layer = authors().eval()
    with torch.no_grad():
        assert layer.route(X).folded
    assert not layer.route(X).folded


def test_a_batch_of_none_has_no_statistics() -> None:
    assert authors().route(X[:0]) == Route("direct", "auto", "fixed", "fixed")


def test_who_looks_on_gets_the_operator() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert uf.ULSAM(4, 2).route(torch.empty(2, 4, 3, 5)).way == "operator"


def test_transforms_get_plain_pytorch() -> None:
    found: list[Route] = []
    layer = authors().eval()

    def function(x: torch.Tensor) -> torch.Tensor:
        found.append(layer.route(x))
        return x

    torch.func.vmap(function)(X.unsqueeze(0))
    assert found[0].way == "reference"


def test_a_shared_batch_goes_to_the_backend_itself() -> None:
    statistics = {"dw_batch": True, "pw_batch": True, "pool_input": False, "gradients": True}
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 4, 3, 5)
        assert norm_route((x,), "auto", **statistics, shared=False).way == "operator"
        assert norm_route((x,), "auto", **statistics, shared=True).way == "direct"
    with pytest.raises(RuntimeError, match='backend "reference" cannot share'):
        norm_route((X,), "reference", **statistics, shared=True)


def test_a_call_takes_the_route_that_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Route] = []
    original = registration.norm_forward

    def spy(*arguments: Any) -> Any:
        taken.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(registration, "norm_forward", spy)
    layer = authors()
    layer(X)
    assert taken == [layer.route(X)]


@pytest.mark.parametrize(
    ("layer", "lines"),
    [
        (uf.ULSAM(4, 2), ["backend: cpp (a CPU tensor, and the C++ kernels are compiled)", "way: the backend itself"]),
        (uf.ULSAM(4, 2, backend="torch"), ["backend: torch (asked for by the layer)"]),
        (uf.ULSAM(4, 2, backend="reference"), ["backend: reference (asked for by the layer)", "way: eager PyTorch"]),
        (
            authors(),
            [
                "norms: dw_norm statistics of this batch, pw_norm statistics of this batch",
                "passes: moments of x, logits and their moments, reweighting",
            ],
        ),
        (dw_frozen(), ["norms: dw_norm running statistics, pw_norm statistics of this batch", "passes: logits and"]),
        (authors().eval(), ["both fold into the convolutions, by PyTorch"]),
        (authors().eval().requires_grad_(False), ["inside the backend's own launch"]),
        (shared(), ["passes: moments of x"]),
    ],
)
def test_explain_says_it_of_a_layer(layer: nn.Module, lines: list[str]) -> None:
    text = uf.explain(X, layer)
    for line in lines:
        assert line in text


def test_explain_names_the_launches_of_every_form(device: str) -> None:
    pytest.importorskip("triton")
    x = X.to(device)
    batch = uf.explain(x, authors(backend="triton", device=device))
    assert "MomentsConfig(" in batch
    assert batch.count("LaunchConfig(") == 2
    assert "forward: a program per slab" in batch
    paper = uf.explain(x, uf.ULSAM(4, 2, backend="triton", device=device))
    assert "MomentsConfig(" not in paper
    assert "slab, one launch" in paper


def test_explain_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="num_splits_or_layer must be an integer or a layer of ulsam_fused, got Linear"):
        uf.explain(X, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"x must have 6 channels, as the layer has, got \[2, 4, 3, 5\]"):
        uf.explain(X, uf.ULSAM(6, 3))
