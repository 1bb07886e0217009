"""`fuse`: what it finds, and what it keeps."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.helpers import wild
from tests.helpers.authors import assert_close
from tests.helpers.fusing import X, assert_equal_state, fused, refused, replaced
from tests.helpers.training import assert_same_training, tensors
from ulsam_fused import reference, upstream
from ulsam_fused.conversion import pattern
from ulsam_fused.conversion.shared_weights import PlainSharedULSAM, SharedULSAM

EXPECTED = {
    "attention": upstream.ULSAM,
    "old": upstream.ULSAM,
    "bank.0": upstream.SubSpace,
    "bank.1": upstream.SubSpace,
    "shared": SharedULSAM,
    "again": upstream.ULSAM,
}


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "authors": lambda: wild.ULSAM(12, 12, 0, 0, 3),
    "authors, legacy": lambda: wild.ULSAM(12, 12, 7, 7, 2, legacy=True),
    "one subspace": lambda: wild.ULSAM(12, 12, 7, 7, 1),
    "one channel each": lambda: wild.ULSAM(12, 12, 7, 7, 12),
    "one channel": lambda: wild.ULSAM(1, 1, 7, 7, 1),
    "two arguments": lambda: wild.ShortULSAM(12, 4),
    "cumulative average": lambda: wild.ShortULSAM(12, 4, momentum=None),
    "block": lambda: wild.ULSAMBlock(12, 12, 3, 3, 4),
    "numbered, nested, no bias": lambda: wild.Numbered(12, 3),
    "ours": lambda: reference.ULSAM(12, 3),
    "ours without ReLU": lambda: reference.ULSAM(12, 3, activation=None),
}


@pytest.mark.parametrize("form", WHOLE)
def test_whole_modules(form: str) -> None:
    model = wild.excited(WHOLE[form](), eps=0.1)
    channels = sum(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1)
    channels = channels or len([layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]) // 2
    ours = fused(copy.deepcopy(model))
    assert type(ours) is upstream.ULSAM
    assert ours.legacy_maxpool_input == ("legacy" in form)
    assert list(replaced()) == [""]
    assert replaced()[""].startswith(f"upstream.ULSAM({channels}, num_splits={ours.num_splits}")
    assert refused() == {}
    assert_same_training(model, ours, channels)


SUBSPACES: dict[str, Callable[[], nn.Module]] = {
    "authors": lambda: wild.SubSpace(12),
    "authors, legacy": lambda: wild.SubSpace(12, legacy=True),
    "one channel": lambda: wild.SubSpace(1),
    "one channel, legacy": lambda: wild.SubSpace(1, legacy=True),
    "branch": lambda: wild.Branch(12),
    "nested, no bias": lambda: wild.NestedSubSpace(12),
}


@pytest.mark.parametrize("form", SUBSPACES)
def test_subspaces_alone(form: str) -> None:
    model = wild.excited(SUBSPACES[form](), eps=0.1)
    ours = fused(copy.deepcopy(model))
    assert type(ours) is upstream.SubSpace
    assert ours.legacy_maxpool_input == ("legacy" in form)
    assert_same_training(model, ours, ours.nin)


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_shared_by_all_subspaces(legacy: bool) -> None:
    model = wild.excited(wild.SharedULSAM(12, 3, legacy=legacy), eps=0.1)
    ours = fused(copy.deepcopy(model))
    assert type(ours) is SharedULSAM
    assert ours.legacy_maxpool_input == legacy
    assert list(ours.state_dict()) == list(model.state_dict())
    assert_same_training(model, ours, 12)


def test_shared_weights_under_other_names() -> None:
    layers = (nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1), nn.BatchNorm2d(1))
    model = wild.excited(PlainSharedULSAM(layers, 3, names=("a", "b", "c", "d")))
    ours = fused(model, inplace=False)
    assert type(ours) is SharedULSAM
    assert [name for name, _ in ours.named_children()] == ["a", "b", "c", "d"]
    assert list(ours.state_dict()) == list(model.state_dict())
    assert_close("y - x", ours(X) - X, model(X) - X)


@pytest.mark.parametrize(
    ("attributes", "splits"),
    [
        ({"num_splits": 3}, [3]),
        ({"g": 2, "groups": 4}, [4, 2]),
        ({"g": 2, "groups": 2}, [2]),
        ({"num_splits": True, "splits": 2.0, "n_splits": 1, "num_split": "3", "other": 5}, []),
    ],
)
def test_possible_splits(attributes: dict[str, Any], splits: list[int]) -> None:
    model = wild.SubSpace(4)
    for name, value in attributes.items():
        setattr(model, name, value)
    assert pattern.possible_splits(model) == splits


def test_a_subspace_with_an_unrelated_number() -> None:
    """An attribute that could be num_splits and is none."""
    model = wild.SubSpace(12)
    model.groups = 3
    assert type(fused(model)) is upstream.SubSpace


@pytest.mark.parametrize("inplace", [True, False])
def test_inside_a_network(inplace: bool) -> None:
    model = wild.excited(wild.Net(), eps=0.1)
    original, modules = copy.deepcopy(model), list(model.modules())
    ours = fused(model, inplace=inplace)
    assert {name: type(ours.get_submodule(name)) for name in EXPECTED} == EXPECTED
    assert set(replaced()) == set(EXPECTED)
    assert refused() == {}
    assert "other names now" in replaced()["attention"]
    assert "names" not in replaced()["old"]
    assert ours.again is ours.old
    assert ours.old.legacy_maxpool_input
    assert not ours.attention.legacy_maxpool_input
    if inplace:
        assert ours is model
    else:
        assert list(model.modules()) == modules
        assert_equal_state(model, original)
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    for module in (original, ours):
        module.train()
        for _ in range(2):
            module.zero_grad()
            module(x).square().sum().backward()
    assert_close("gradient of the stem", ours.stem[0].weight.grad, original.stem[0].weight.grad)
    for name, mean in ours.old.named_buffers():
        assert_close(name, mean, original.old.get_buffer(name))
    assert {int(part.bn_dws.num_batches_tracked) for part in ours.old.subspaces} == {4}  # used twice
    assert int(ours.shared.dws_bn.num_batches_tracked) == 4
    ours.eval()
    original.eval()
    assert_close("result", ours(x), original(x))
    old, new = original.attention(X), ours.attention(X)
    assert_close("y - x", new - X, old - X)


def test_a_chain_of_subspaces_is_no_whole_module() -> None:
    chain = wild.excited(nn.Sequential(wild.SubSpace(12), wild.SubSpace(12)))
    expected = copy.deepcopy(chain).eval()(X)
    fused(chain)
    assert list(replaced()) == ["0", "1"]
    assert_close("y - x", chain.eval()(X) - X, expected - X)


@pytest.mark.parametrize("more", ["layer", "parameter", "buffer"])
def test_subspaces_beside_other_weights_are_taken_alone(more: str) -> None:
    class Gained(wild.ShortULSAM):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (self.gain.weight if more == "layer" else self.gain).view(-1, 1, 1)

    model = Gained(12, 3)
    if more == "layer":
        model.gain = nn.BatchNorm2d(12)
    elif more == "parameter":
        model.gain = nn.Parameter(torch.ones(12))
    else:
        model.register_buffer("gain", torch.ones(12))
    expected = copy.deepcopy(wild.excited(model)).eval()(X)
    fused(model)
    assert list(replaced()) == ["subspaces.0", "subspaces.1", "subspaces.2"]
    assert refused() == {}
    assert_close("y", model.eval()(X), expected)


def test_one_channel_and_layers_in_another_order() -> None:
    """Both convolutions and both norms look alike: only running it tells which is which."""

    class Other(wild.SubSpace):
        def __init__(self) -> None:
            super().__init__(1)
            for name in ("conv_dws", "bn_dws"):
                layer = getattr(self, name)
                delattr(self, name)
                self.add_module(name, layer)

    model = wild.excited(Other())
    kept = copy.deepcopy(model).state_dict()
    ours = fused(model)
    assert all(torch.equal(t, kept[key]) for key, t in ours.state_dict().items())
    assert torch.equal(ours.conv_point.weight, kept["conv_point.weight"])


def test_the_layers_stay_the_same_objects() -> None:
    """So an optimizer may be made before."""
    model = wild.excited(wild.Net(), eps=0.1)
    parameters, copied = list(model.parameters()), copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, copied)]
    fused(model)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    for _ in range(2):
        for module, optimizer in zip((model, copied), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    for (name, p), q in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert_close(name, p.detach(), q.detach(), absolute=1e-9)
    assert model.old.joins(X) is None
    uf.unfuse(model)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]


class Bank(nn.Module):
    """Holds subspaces and nothing else, and uses one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleList([wild.SubSpace(12) for _ in range(3)])

    def forward(self, x: Tensor, i: int) -> Tensor:
        return self.attention[i](x)


class Wrapped(nn.Module):
    """One subspace in a list, and something after it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([wild.SubSpace(12)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x).relu()


@pytest.mark.parametrize(("holder", "count"), [(Bank, 3), (Wrapped, 1)])
def test_holders_of_subspaces(holder: type[nn.Module], count: int) -> None:
    model = holder()
    fused(model)
    assert len(replaced()) == count
    assert set(map(type, next(iter(model.children())))) == {upstream.SubSpace}
    assert refused() == {}


def test_what_is_fused_stays() -> None:
    model = nn.Sequential(upstream.ULSAM(12, num_splits=3), fused(wild.SharedULSAM(12, 3)), uf.ULSAM(12))
    modules = list(model.modules())
    fused(model)
    assert list(model.modules()) == modules
    assert uf.fuse.last_report.replaced == uf.fuse.last_report.refused == []
    assert str(uf.fuse.last_report) == "no ULSAM found, nothing replaced"


def test_state_dict_of_the_authors_names_is_the_same() -> None:
    model = wild.excited(wild.ULSAM(12, 12, 7, 7, 3))
    ours = fused(copy.deepcopy(model))
    assert_equal_state(ours, model)
    ours.load_state_dict(wild.ULSAM(12, 12, 7, 7, 3).state_dict())


def test_attributes_that_callers_read() -> None:
    ours = fused(wild.ULSAM(12, 13, 14, 15, 3))
    assert (ours.nin, ours.nout, ours.h, ours.w, ours.num_splits) == (12, 13, 14, 15, 3)


def test_modes() -> None:
    """Every flag by itself: of the module, and of each norm."""
    for flags in [(True, True, True), (True, False, True), (True, True, False), (False, False, False)]:
        model = wild.excited(wild.ShortULSAM(12, 3), eps=0.1)
        model.train(flags[0])
        for part in model.subspaces:
            part.bn_dws.train(flags[1])
            part.bn_point.train(flags[2])
        ours = fused(copy.deepcopy(model))
        part = ours.subspaces[1]
        assert (ours.training, part.training) == (flags[0], flags[0])
        assert (ours.training, part.bn_dws.training, part.bn_point.training) == flags
        assert_same_training(model, ours, 12)


def test_norms_without_running_statistics() -> None:
    model = wild.ShortULSAM(12, 3)
    for part in model.subspaces:
        part.bn_dws = nn.BatchNorm2d(4, track_running_stats=False)
    ours = fused(copy.deepcopy(model))
    assert ours.joins(X) is None
    model = wild.excited(model, eps=0.1).eval()
    ours = fused(copy.deepcopy(model))
    assert_close("y - x in eval", ours(X) - X, model(X) - X)


def test_running_statistics_that_are_not_updated() -> None:
    model = wild.excited(wild.ShortULSAM(12, 3), eps=0.1)
    for part in model.subspaces:
        part.bn_point.track_running_stats = False
    ours = fused(copy.deepcopy(model))
    assert_same_training(model, ours, 12)


@pytest.mark.parametrize(
    "part", ["conv_dws.weight", "conv_dws.bias", "bn_dws.bias", "conv_point.weight", "bn_point.weight"]
)
def test_requires_grad(part: str) -> None:
    model = wild.ShortULSAM(12, 3)
    for subspace in model.subspaces:
        subspace.get_parameter(part).requires_grad_(False)
    ours = fused(model)
    frozen = [f"subspaces.{i}.{part}" for i in range(3)]
    assert [n for n, p in ours.named_parameters() if not p.requires_grad] == frozen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    model = wild.excited(wild.ShortULSAM(12, 3)).to(dtype)
    ours = fused(copy.deepcopy(model))
    assert_equal_state(ours, model)
    assert {t.dtype for t in tensors(ours)} == {dtype, torch.int64}


def test_place_and_random_numbers_of_a_device(device: str) -> None:
    model = wild.excited(wild.Net()).to(device).eval()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, device=device)
    expected = model(x)
    state = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    fused(model)
    assert torch.equal(torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state(), state)
    assert {t.device.type for t in tensors(model)} == {device}
    assert len(replaced()) == len(EXPECTED)
    assert_close("result", model(x), expected)
    uf.unfuse(model)
    assert {t.device.type for t in tensors(model)} == {device}


def test_half_convolutions_between_float32_norms() -> None:
    model = wild.ShortULSAM(12, 3).half()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.float()
    ours = fused(model)
    assert ours.subspaces[0].conv_dws.weight.dtype == torch.float16
    assert ours.subspaces[0].bn_point.weight.dtype == torch.float32
    assert ours(X.half()).dtype == torch.float16


def test_one_bias_only() -> None:
    model = wild.ShortULSAM(12, 3)
    for part in model.subspaces:
        part.conv_point.bias = None
    model = wild.excited(model, eps=0.1)
    ours = fused(copy.deepcopy(model))
    assert ours.joins(X) is None
    assert_same_training(model, ours, 12)


class ProcessGroup:
    """Cannot be copied, like the real one."""

    def __deepcopy__(self, memo: object) -> None:
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("inplace", [True, False])
def test_norms_synchronised_between_processes(inplace: bool) -> None:
    group = ProcessGroup()
    model = wild.excited(wild.ShortULSAM(12, 3)).eval()
    expected = model(X)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    ours = fused(synchronised, inplace=inplace)
    for norm in (ours.subspaces[0].bn_dws, ours.subspaces[2].bn_point):
        assert type(norm) is nn.SyncBatchNorm
        assert norm.process_group is group
    assert_close("y - x", ours(X) - X, expected - X)


def test_a_module_in_two_places_and_in_a_shared_parent() -> None:
    block = nn.Sequential(wild.SubSpace(12), nn.ReLU())
    model = nn.ModuleDict({"a": block, "b": block, "c": block[0]})
    fused(model)
    assert [name for name, _ in uf.fuse.last_report.replaced] == ["a.0", "b.0", "c"]
    assert model["a"][0] is model["b"][0] is model["c"]
    assert type(model["c"]) is upstream.SubSpace


def test_a_shared_ulsam_keeps_its_parameters() -> None:
    model = wild.SharedULSAM(12, 3)
    parameters = list(model.parameters())
    assert all(a is b for a, b in zip(fused(model).parameters(), parameters, strict=True))
