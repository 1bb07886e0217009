"""Layers inside the authors' form, or norms of the flat layer, that the operator does not know: they are called."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import ulsam_fused as uf
from tests.helpers.authors import FrozenBatchNorm2d, assert_close, assert_same_step, norms, pair, step
from ulsam_fused.conversion.pattern import Layers
from ulsam_fused.conversion.shared_weights import SharedULSAM

X, DY = torch.randn(2, 2, 6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()


class Adapted(nn.Module):
    """A wrapper around a convolution, as adapters for fine-tuning are."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.inner = inner
        self.extra = nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y + self.extra * x.mean(1, keepdim=True)


def replace(subspace: Any, name: str, make: Callable[[Any], nn.Module]) -> None:
    setattr(subspace, name, make(getattr(subspace, name)))


def twice(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return 2 * output


def own_forward(norm: Any) -> None:
    inner = norm.forward
    norm.forward = lambda x: 3 * inner(x)


ODD: dict[str, tuple[Callable[[Any], object], str]] = {
    "instance norm": (lambda s: replace(s, "bn_dws", lambda n: nn.InstanceNorm2d(2)), "bn_dws is InstanceNorm2d(2"),
    "no norm": (lambda s: replace(s, "bn_point", lambda n: nn.Identity()), "bn_point is Identity()"),
    "no scale": (lambda s: replace(s, "bn_dws", lambda n: nn.BatchNorm2d(2, affine=False).double()), "bn_dws is Batch"),
    "adapter": (lambda s: replace(s, "conv_point", Adapted), "conv_point is Adapted()"),
    "activation": (lambda s: replace(s, "relu_point", lambda r: nn.SiLU()), "relu_point is SiLU()"),
    "no activation": (lambda s: replace(s, "relu_dws", lambda r: nn.Identity()), "relu_dws differs from"),
    "pool": (lambda s: replace(s, "maxpool", lambda p: nn.MaxPool2d(5, 1, 2)), "maxpool is MaxPool2d(kernel_size=5"),
    "hook": (lambda s: s.bn_point.register_forward_hook(twice), "bn_point has hooks or a forward of its own"),
    "hook of a subspace": (lambda s: s.register_forward_hook(twice), "subspaces.1 has hooks"),
    "forward": (lambda s: own_forward(s.bn_dws), "bn_dws has hooks or a forward of its own"),
    "pruned": (lambda s: prune.l1_unstructured(s.conv_point, "weight", amount=1), "conv_point has hooks"),
    "eps": (lambda s: setattr(s.bn_point, "eps", 1.0), "bn_point differs from"),
    "mode": (lambda s: s.bn_dws.eval(), "bn_dws differs from"),
    "type": (lambda s: s.conv_dws.float(), "conv_dws.weight differs between subspaces in type"),
}  # fmt: skip


@pytest.mark.parametrize("seen", [False, True], ids=["", "after a call"])
def test_layers_that_the_operator_does_not_know_are_called(seen: bool) -> None:
    """The authors' module with the same change gives the same, in training and in eval mode."""
    for kind, (change, reason) in ODD.items():
        torch.manual_seed(0)
        theirs, ours = pair(6, 3)
        if seen:
            assert_same_step(theirs, ours, X, DY)
        for module in (theirs, ours):
            torch.manual_seed(0)
            change(module.subspaces[1])
        assert reason in uf.explain(X, ours), kind
        if kind == "type":  # theirs raises, and so does ours
            with pytest.raises(RuntimeError), pytest.warns(UserWarning, match=r"differs .* in type"):
                ours(X)
            continue
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert_same_step(theirs, ours, X, DY)
            before = {name: t.clone() for name, t in ours.named_buffers()}
            maps, buffers = ours.attention(X), dict(ours.named_buffers())
            assert all(torch.equal(t, before[name]) for name, t in buffers.items()), kind
            y = ours(X)
            if kind != "hook of a subspace":
                assert_close(kind, (maps.repeat_interleave(2, 1) * X).detach(), (y - X).detach())
            theirs(X)
            assert_same_step(theirs.eval(), ours.eval(), X, DY)
        assert ["calls its layers one by one in eager PyTorch" in str(w.message) for w in warned] == [True], kind
        called_itself = "hook" in kind or kind in ("forward", "pruned")
        plain = theirs if called_itself else uf.unfuse(copy.deepcopy(ours))
        assert_close(f"unfused, {kind}", (plain(X) - X).detach(), (theirs(X) - X).detach())


def test_frozen_norms_are_understood(recwarn: pytest.WarningsRecorder) -> None:
    for names in (("bn_dws",), ("bn_point",), ("bn_dws", "bn_point")):
        theirs, ours = pair(6, 3)
        for module in (theirs, ours):
            for subspace in module.subspaces:
                for name in names:
                    replace(subspace, name, FrozenBatchNorm2d)
        for training in (True, False):
            assert_same_step(theirs.train(training), ours.train(training), X, DY)
        ours.flatten_parameters()
        assert ours.joins(X) is None
        assert_same_step(theirs.train(), ours.train(), X, DY)
        flat = uf.ULSAM(6, 3, bias=True, norm="batch", activation="relu", dtype=torch.float64)
        for own, name in (("dw_norm", "bn_dws"), ("pw_norm", "bn_point")):
            if name in names:
                replace(flat, own, FrozenBatchNorm2d)
        whole = uf.unfuse(copy.deepcopy(flat))
        assert_close("flat", flat(X) - X, whole(X) - X)
    assert not recwarn.list


def test_frozen_norms_of_other_packages() -> None:
    freeze = pytest.importorskip("timm.layers", exc_type=ImportError).freeze_batch_norm_2d
    theirs, ours = pair(6, 3)
    step(theirs, X, DY)
    ours.load_state_dict(theirs.state_dict())
    theirs, ours = freeze(theirs), freeze(ours)
    assert ours.problem() is None
    assert_same_step(theirs, ours, X, DY)


def test_other_norms_of_the_flat_layer_are_called() -> None:
    """`attention` and `forward` agree, and running statistics stay as they are under `attention`."""

    def plain(layer: Any) -> tuple[Tensor, Tensor]:
        u = F.conv2d(X, layer.dw_weight.view(6, 1, 1, 1), layer.dw_bias, groups=6)
        m = F.max_pool2d(layer.dw_norm(u).relu(), 3, 1, 1)
        z = layer.pw_norm(F.conv2d(m, layer.pw_weight.view(3, 2, 1, 1), layer.pw_bias, groups=3)).relu()
        return z.flatten(2).softmax(2).view_as(z).repeat_interleave(2, 1) * X, z

    for dw_norm, pw_norm in (
        (nn.InstanceNorm2d(6, affine=True), None),
        (nn.GroupNorm(2, 6), None),
        (None, nn.Identity()),
        (None, nn.InstanceNorm2d(3, track_running_stats=True)),
    ):
        layer = uf.ULSAM(6, 3, bias=True, norm="batch", activation="relu").double()
        layer.dw_norm, layer.pw_norm = dw_norm or layer.dw_norm, pw_norm or layer.pw_norm
        layer.double()
        twin = copy.deepcopy(layer)
        with pytest.warns(UserWarning, match=r"(dw|pw)_norm is (Instance|Group|Iden)"):
            assert_close("y - x", layer(X) - X, plain(twin)[0])
        assert "called one by one" in uf.explain(X, layer)
        for name, t in layer.named_buffers():
            assert_close(name, t, twin.get_buffer(name))
        before = {name: t.clone() for name, t in layer.named_buffers()}
        maps = layer.attention(X)
        assert all(torch.equal(t, before[name]) for name, t in layer.named_buffers())
        assert_close("A", (maps.repeat_interleave(2, 1) * X).detach(), plain(twin)[0].detach())
        if isinstance(dw_norm, nn.GroupNorm) or isinstance(pw_norm, nn.Identity):
            with pytest.raises(ValueError, match="of which a subspace cannot have a part"):
                uf.unfuse(layer)
        else:
            assert_close("unfused", uf.unfuse(copy.deepcopy(layer))(X) - X, plain(twin)[0])
    hooked = uf.ULSAM(6, 3, norm="batch").double()
    hooked.dw_norm.register_forward_hook(twice)
    with pytest.warns(UserWarning, match="dw_norm has hooks"):
        hooked(X)


@pytest.mark.filterwarnings("ignore:.*calls its layers one by one")
def test_called_layers_keep_the_memory_format() -> None:
    x = X.float().contiguous(memory_format=torch.channels_last)
    for out_dtype in (None, torch.float64):
        flat = uf.ULSAM(6, 3, norm="batch", out_dtype=out_dtype).eval()
        flat.dw_norm = nn.Identity()
        authors = uf.upstream.ULSAM(6, num_splits=3, out_dtype=out_dtype).eval()
        replace(authors.subspaces[0], "bn_dws", lambda n: nn.Identity())
        for layer in (flat, authors):
            assert layer(x).stride() == x.stride()
            assert layer(X.float()).stride() == X.stride()


def test_shared_layers_are_called_or_understood() -> None:
    for make, routed in (
        (FrozenBatchNorm2d, "running statistics"),
        (lambda n: nn.InstanceNorm2d(3), "called one by one"),
    ):
        layers = Layers(nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
        shared: Any = SharedULSAM(layers, 2).double()
        replace(shared, "dws_bn", make)
        plain = uf.unfuse(copy.deepcopy(shared))
        assert routed in uf.explain(X, shared)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            maps = shared.attention(X)
            assert_close("buffers", shared.point_bn.running_var, plain.point_bn.running_var)
            y, expected = shared(X), plain(X)
        assert len(warned) == (routed == "called one by one")
        assert_close("y - x", (y - X).detach(), (expected - X).detach())
        assert_close("A", (maps.repeat_interleave(3, 1) * X).detach(), (expected - X).detach())
        assert_close("buffers", shared.point_bn.running_var, plain.point_bn.running_var)


def moved(m: Any) -> None:
    m.subspaces[1].conv_point.weight.data = m.subspaces[1].conv_point.weight.data.clone()


@pytest.mark.slow  # torch.compile traces
def test_unusual_layers_compile_and_trace() -> None:
    for change in (moved, lambda m: replace(m.subspaces[1], "bn_dws", lambda n: nn.InstanceNorm2d(2))):
        _, ours = pair(6, 3)
        change(ours)
        plain = uf.unfuse(copy.deepcopy(ours))
        torch.compiler.reset()
        ours.compile(fullgraph=True, backend="aot_eager")
        assert_same_step(plain, ours, X, DY)
        ours = copy.deepcopy(ours)  # which is not compiled
        assert_same_step(plain, ours, X, DY)
    traced = torch.jit.trace(ours.eval(), X)
    with torch.no_grad():
        for _ in range(2):  # whose parameters are those of the layer
            assert_close("traced", traced(X) - X, uf.unfuse(copy.deepcopy(ours))(X) - X)
            ours.subspaces[0].bn_point.weight.mul_(2)


def test_counts_that_differ_without_a_momentum() -> None:
    """Then a batch weighs otherwise in each subspace."""
    theirs, ours = pair(6, 3, momentum=None)
    for module in (theirs, ours):
        norms(module, "bn_dws")[1].num_batches_tracked.add_(3)
    with pytest.warns(UserWarning, match=r"subspaces\.1\.bn_dws differs from subspaces\.0\.bn_dws"):
        assert_same_step(theirs, ours, X, DY)
