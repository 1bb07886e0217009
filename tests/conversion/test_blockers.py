"""`fuse`: what it refuses and why, and that it leaves that alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

import ulsam_fused as uf
from tests.helpers import wild
from tests.helpers.fusing import X, assert_untouched, assert_untouched_structure, fused, refused, replaced
from tests.helpers.training import assert_same_training
from ulsam_fused import reference, upstream
from ulsam_fused.conversion.equivalence import TOLERANCE, Comparison


class SE(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


LOOKALIKES: dict[str, tuple[dict[str, nn.Module], str]] = {
    "squeeze and excitation": ({"relu_dws": SE(4)}, "relu_dws is a SE"),
    "another activation": ({"relu_dws": nn.Hardswish()}, "relu_dws is a Hardswish"),
    "LayerNorm": ({"bn_dws": nn.LayerNorm([4, 5, 4])}, "bn_dws is a LayerNorm"),
    "GroupNorm": ({"bn_dws": nn.GroupNorm(2, 4)}, "bn_dws is a GroupNorm"),
    "InstanceNorm": ({"bn_dws": nn.InstanceNorm2d(4, affine=True)}, "bn_dws is a InstanceNorm2d"),
    "no BatchNorm": ({"bn_dws": nn.Identity()}, "2 convolutions and 1 BatchNorms"),
    "an additional convolution": ({"more": nn.Conv2d(4, 4, 1)}, "3 convolutions and 2 BatchNorms"),
    "dropout": ({"drop": nn.Dropout()}, "drop is a Dropout"),
    "no gamma": ({"bn_point": nn.BatchNorm2d(1, affine=False)}, "bn_point has no weight"),
    "dilated pool": ({"maxpool": nn.MaxPool2d(3, 1, 1, dilation=2)}, "maxpool is not a 3x3 pool"),
    "pool of 5": ({"maxpool": nn.MaxPool2d(5, 1, 2)}, "maxpool is not a 3x3 pool"),
    "pool with ceil_mode": ({"maxpool": nn.MaxPool2d(3, 1, 1, ceil_mode=True)}, "maxpool is not a 3x3 pool"),
    "average pool": ({"maxpool": nn.AvgPool2d(3, 1, 1)}, "maxpool is a AvgPool2d"),
    "convolution of 3": ({"conv_dws": nn.Conv2d(4, 4, 3, padding=1, groups=4)}, "conv_dws is not a 1x1 convolution"),
    "convolution of stride 2": ({"conv_dws": nn.Conv2d(4, 4, 1, stride=2, groups=4)}, "not a 1x1 convolution"),
    "padded convolution": ({"conv_point": nn.Conv2d(4, 1, 1, padding=1)}, "conv_point is not a 1x1 convolution"),
    "full convolution": ({"conv_dws": nn.Conv2d(4, 4, 1)}, "do not have the channels of a subspace"),
    "norm of other channels": ({"bn_point": nn.BatchNorm2d(4)}, "do not have the channels of a subspace"),
}


def changed(subspace: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    for name, layer in layers.items():
        subspace.add_module(name, layer)
    return subspace


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_lookalikes(kind: str) -> None:
    layers, reason = LOOKALIKES[kind]
    assert_untouched(nn.Sequential(nn.ReLU(), changed(wild.SubSpace(4), copy.deepcopy(layers))), "1", reason)
    whole = wild.ShortULSAM(12, 3)
    for part in whole.subspaces:
        changed(part, copy.deepcopy(layers))
    assert_untouched(nn.ModuleDict({"whole": whole}), "whole", "subspaces.0: ")
    assert reason in refused()["whole"]


@pytest.mark.parametrize("d", [1, 3])
def test_forms_of_other_dimensions(d: int) -> None:
    def kind(name: str) -> Any:
        return getattr(nn, f"{name}{d}d")

    model = nn.Module()
    model.conv_dws, model.bn_dws, model.relu = kind("Conv")(4, 4, 1, groups=4), kind("BatchNorm")(4), nn.ReLU()
    model.maxpool, model.softmax = kind("MaxPool")(3, 1, 1), nn.Softmax(2)
    model.conv_point, model.bn_point = kind("Conv")(4, 1, 1), kind("BatchNorm")(1)
    assert_untouched(model, "", f"conv_dws is a Conv{d}d")


@pytest.mark.parametrize("owner", ["parameter", "buffer"])
def test_a_subspace_with_weights_of_its_own(owner: str) -> None:
    model = wild.SubSpace(4)
    if owner == "parameter":
        model.gain = nn.Parameter(torch.ones(1))
    else:
        model.register_buffer("gain", torch.ones(1))
    assert_untouched(model, "", "it has gain of its own")


def test_a_layer_with_more_than_its_weights() -> None:
    model = wild.SubSpace(4)
    model.conv_point.scale = nn.Parameter(torch.ones(1))
    assert_untouched(model, "", "conv_point has more than its own weights: scale")


def test_the_form_of_the_paper() -> None:
    assert_untouched(reference.ULSAM(12, 3, norm=None, activation=None), "", "0 BatchNorms")


def test_derived_layers() -> None:
    class Special(nn.Conv2d):
        pass

    assert_untouched(changed(wild.SubSpace(4), {"conv_dws": Special(4, 4, 1, groups=4)}), "", "conv_dws is a Special")


def test_called_ulsam_and_nothing_like_it() -> None:
    class ULSAM1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.ModuleList([nn.Linear(4, 4)])
            self.norm = nn.LayerNorm(4)

    assert_untouched(nn.Sequential(ULSAM1D()), "0", "it is called ULSAM1D and is not built as the authors' code is")


def test_a_network_called_ulsam_is_no_lookalike() -> None:
    class ULSAMNet(nn.Sequential):
        pass

    fused(ULSAMNet(nn.Conv2d(3, 12, 1), wild.SubSpace(12)))
    assert list(replaced()) == ["1"]
    assert refused() == {}
    fused(ULSAMNet(nn.Conv2d(3, 12, 1), uf.ULSAM(12)))
    assert refused() == {}


def test_one_refusal_stops_nothing_else() -> None:
    model = nn.Sequential(wild.SubSpace(4), changed(wild.SubSpace(4), {"relu_dws": SE(4)}), wild.ShortULSAM(4, 2))
    fused(model)
    assert list(replaced()) == ["0", "2"]
    assert list(refused()) == ["1"]
    text = str(uf.fuse.last_report).splitlines()
    assert text[0].startswith("0: replaced by upstream.SubSpace(4,")
    assert text[2].startswith("1: refused, relu_dws is a SE")


class GlobalContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask, self.softmax = nn.Conv2d(12, 1, 1), nn.Softmax(dim=2)
        self.transform = nn.Sequential(nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1))


@pytest.mark.parametrize(
    "model",
    [
        GlobalContext(),
        nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 1, 1),
                      nn.BatchNorm2d(1), nn.Sigmoid()),  # a depthwise separable head
        nn.Sequential(nn.Conv2d(12, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Softmax(1)),  # spatial attention
        nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.MaxPool2d(3, 2, 1), nn.Conv2d(12, 12, 1), SE(12), nn.Softmax(1)),
        nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
        nn.Linear(2, 2),
    ],
    ids=["global context", "separable head", "spatial attention", "cnn", "transformer", "linear"],
)  # fmt: skip
def test_ordinary_models_give_an_empty_report(model: nn.Module) -> None:
    assert fused(model) is model
    assert uf.fuse.last_report.replaced == uf.fuse.last_report.refused == []


class NoResidual(wild.SubSpace):
    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self.logits(x)) * x


class Sigmoid(wild.SubSpace):
    def attend(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class PerRow(wild.SubSpace):
    def attend(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class Detached(wild.SubSpace):
    """The same values, another gradient."""

    def attend(self, logits: Tensor) -> Tensor:
        return super().attend(logits.detach())


class Dropped(wild.SubSpace):
    """The same in eval mode."""

    def attend(self, logits: Tensor) -> Tensor:
        return F.dropout(super().attend(logits), 0.5, self.training)


class FrozenInTraining(wild.SubSpace):
    """The same in training mode."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) if self.training else super().logits(x) * 0.5


class NormTwice(wild.SubSpace):
    """The same results, other running statistics."""

    def logits(self, x: Tensor) -> Tensor:
        self.bn_dws(self.conv_dws(x) * 2)
        return super().logits(x)


class Reordered(wild.SubSpace):
    def logits(self, x: Tensor) -> Tensor:
        out = self.maxpool(self.relu_dws(self.conv_dws(self.bn_dws(x))))
        return self.relu_point(self.bn_point(self.conv_point(out)))


class PooledAlone(wild.SubSpace):
    """As the old code, but with statistics that nothing updates."""

    def logits(self, x: Tensor) -> Tensor:
        return self.relu_point(self.bn_point(self.conv_point(self.maxpool(x))))


class Scaled(wild.SubSpace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "kind",
    [NoResidual, Sigmoid, PerRow, Detached, Dropped, FrozenInTraining, NormTwice, Reordered, PooledAlone, Scaled],
)
def test_the_same_layers_used_otherwise(kind: type[wild.SubSpace]) -> None:
    assert_untouched(wild.excited(kind(6)), "", "it computes something else")


class Strided(wild.ShortULSAM):
    """Cuts every g-th channel."""

    def forward(self, x: Tensor) -> Tensor:
        g = self.num_splits
        return torch.stack([part(x[:, i::g]) for i, part in enumerate(self.subspaces)], dim=2).flatten(1, 2)


class Backwards(wild.ShortULSAM):
    def forward(self, x: Tensor) -> Tensor:
        chunks = reversed(torch.chunk(x, self.num_splits, dim=1))
        return torch.cat([part(c) for part, c in zip(self.subspaces, chunks, strict=True)][::-1], dim=1)


class Shuffled(wild.ShortULSAM):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(1, (self.num_splits, -1)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("kind", [Strided, Backwards, Shuffled])
def test_the_same_subspaces_used_otherwise(kind: type[wild.ShortULSAM]) -> None:
    assert_untouched(nn.Sequential(wild.excited(kind(12, 3))), "0", "it computes something else")


class Pair(wild.SubSpace):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.attend(self.logits(x))


class Broken(wild.SubSpace):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Pair, "running it raised ValueError: the result is no tensor"), (Broken, "RuntimeError: not today")],
)
def test_what_does_not_run(kind: type[wild.SubSpace], reason: str) -> None:
    assert_untouched(kind(6), "", reason)


def test_a_comparison_sees_an_identity() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    found = Comparison(wild.SubSpace(6), 6)
    assert found.error(lambda _: Nothing()) > 0.9
    assert found.error(lambda module: uf.fuse(module)) < TOLERANCE


def test_a_comparison_sees_nan() -> None:
    class NotANumber(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.nan

    assert Comparison(wild.SubSpace(6), 6).error(lambda _: NotANumber()) == torch.inf


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward hooks": lambda m: m.register_forward_hook(print),
    "forward pre hooks": lambda m: m.register_forward_pre_hook(print),
    "backward hooks": lambda m: m.register_full_backward_hook(print),
    "backward pre hooks": lambda m: m.register_full_backward_pre_hook(print),
    "state dict hooks": lambda m: m.register_state_dict_post_hook(lambda *_: None),
    "state dict pre hooks": lambda m: m.register_state_dict_pre_hook(print),
    "load state dict pre hooks": lambda m: m.register_load_state_dict_pre_hook(print),
    "load state dict post hooks": lambda m: m.register_load_state_dict_post_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["", "subspaces", "subspaces.1.relu_dws"])
def test_hooks(kind: str, name: str) -> None:
    model = wild.ShortULSAM(12, 3)
    HOOKS[kind](model.get_submodule(name))
    fused(model)
    assert refused() == {"": f"{name or 'it'} has {kind}"}
    assert replaced() == {}


def test_hooks_around_a_ulsam_do_not_matter() -> None:
    model = nn.Sequential(wild.SubSpace(12))
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    fused(model)(X.float())
    assert list(replaced()) == ["0"]
    assert seen == [1]


def test_hooks_of_tensors() -> None:
    model = wild.SubSpace(12)
    model.conv_dws.weight.register_hook(lambda grad: grad * 2)
    assert_untouched_structure(model, "conv_dws.weight has a hook")
    model = wild.SubSpace(12)
    model.bn_point.bias.register_post_accumulate_grad_hook(lambda p: None)
    assert_untouched_structure(model, "bn_point.bias has a hook")


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def test_parametrized_weights() -> None:
    model = wild.SubSpace(12)
    parametrize.register_parametrization(model.conv_dws, "weight", Double())
    assert_untouched_structure(model, "conv_dws is parametrized")
    model = wild.SubSpace(12)
    parametrizations.weight_norm(model.conv_point)
    assert_untouched_structure(model, "conv_point is parametrized")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_the_old_kind() -> None:
    model = wild.SubSpace(12)
    weight_norm(model.conv_dws)
    assert_untouched_structure(model, "conv_dws has more than its own weights: weight_g, weight_v")


def test_weights_on_the_meta_device() -> None:
    assert_untouched_structure(wild.SubSpace(12).to("meta"), "meta device")


def test_mixed_types() -> None:
    model = wild.ShortULSAM(12, 3)
    model.subspaces[1].conv_dws.double()
    assert_untouched(model, "", "convolutions' types are torch.float32, torch.float64")
    model = wild.SubSpace(12)
    model.bn_dws.double()
    assert_untouched(model, "", "BatchNorms' types are torch.float32, torch.float64 beside torch.float32")


DIFFERENCES: dict[str, tuple[Callable[[wild.SubSpace], object], str]] = {
    "eps": (lambda s: setattr(s.bn_dws, "eps", 0.1), "dw_norm differ in eps: 1e-05, 0.1, 1e-05"),
    "momentum": (lambda s: setattr(s.bn_point, "momentum", None), "pw_norm differ in momentum: 0.9, None, 0.9"),
    "training": (lambda s: s.bn_point.eval(), "pw_norm differ in training: True, False, True"),
    "bias": (lambda s: setattr(s.conv_point, "bias", None), "pw differ in bias: present, absent, present"),
    "tracking": (lambda s: setattr(s.bn_dws, "track_running_stats", False), "dw_norm differ in track_running_stats"),
    "statistics": (
        lambda s: s.add_module("bn_dws", nn.BatchNorm2d(4, momentum=0.9, track_running_stats=False)), "dw_norm differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_subspaces_that_differ(kind: str) -> None:
    model = wild.ShortULSAM(12, 3)
    DIFFERENCES[kind][0](model.subspaces[1])
    assert_untouched(model, "", DIFFERENCES[kind][1])


def test_counts_and_what_learns_may_differ() -> None:
    model = wild.excited(wild.ShortULSAM(12, 3), eps=0.1)
    model.subspaces[1].bn_dws.num_batches_tracked.add_(1)
    model.subspaces[2].conv_dws.weight.requires_grad_(False)
    kept = copy.deepcopy(model)
    assert_same_training(kept, fused(model), 12)
    model = wild.ShortULSAM(12, 3, momentum=None)
    model.subspaces[1].bn_dws.num_batches_tracked.add_(1)
    assert_untouched(model, "", "dw_norm differ in num_batches_tracked: 0, 1, 0")


def test_one_norm_synchronised() -> None:
    model = wild.SubSpace(12)
    model.bn_dws = nn.SyncBatchNorm(12)
    assert_untouched(model, "", "only one of its BatchNorms is a SyncBatchNorm")


def test_subspaces_of_other_sizes_are_taken_alone() -> None:
    model = wild.ShortULSAM(12, 3)
    model.subspaces[1] = wild.SubSpace(8)
    fused(model)
    assert list(replaced()) == ["subspaces.0", "subspaces.1", "subspaces.2"]


def test_tied_weights() -> None:
    model = nn.Sequential(wild.SubSpace(12), nn.Conv2d(12, 12, 1, groups=12))
    model[1].weight = model[0].conv_dws.weight
    assert_untouched(model, "0", "it shares a weight with another layer: 1.weight")
    model = wild.ShortULSAM(12, 3)
    model.subspaces[2].bn_dws.bias = model.subspaces[0].bn_dws.bias
    assert_untouched(model, "", "shares a weight")
    model = wild.ShortULSAM(12, 3)
    model.subspaces[2] = model.subspaces[0]
    assert_untouched(model, "", "shares a weight")


def test_a_subspace_of_two_modules() -> None:
    model = nn.ModuleDict({"a": wild.ShortULSAM(12, 3), "b": nn.ModuleList()})
    model["b"].append(model["a"].subspaces[1])
    fused(model)
    assert "it shares a weight with another layer: b.0.conv_dws.weight" in refused()["a"]
    assert model["a"].subspaces[1] is model["b"][0]


def test_modules_in_plain_attributes() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = wild.ShortULSAM(12, 3)
            self.plain = {"inner": self.attention.subspaces[0]}

    assert_untouched(Holder(), "attention", "subspaces.0 is also held in the attribute plain of Holder")


def test_a_ulsam_that_lists_its_own_subspaces() -> None:
    model = nn.Sequential(wild.ShortULSAM(12, 3))
    model[0].listed = tuple(model[0].subspaces)
    assert type(fused(model)[0]) is upstream.ULSAM


def test_inside_distributed_data_parallel() -> None:
    class Wrapper(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    model = nn.Sequential(Wrapper(wild.SubSpace(12)))
    fused(model)
    assert refused() == {"0.module": "it is inside DistributedDataParallel: fuse before wrapping"}
    assert type(model[0].module) is wild.SubSpace
