"""`uf.models`: names are torchvision's, ULSAMs stand where they were asked for, and what users do with them works."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ulsam_fused as uf
from tests.helpers.authors import kind, part
from ulsam_fused.models import MobileNet, mobilenet_v1, mobilenet_v2
from ulsam_fused.models.counting import count

TORCHVISION = json.loads((Path(__file__).parent / "torchvision_mobilenet_v2.json").read_text())
"""Name -> shape of every entry of torchvision's mobilenet_v2().state_dict()."""

PLACES: dict[str, Any] = {"insert": {5: 2, 17: 4}, "replace": {4: 3, 14: 8}}
BUILDERS = (mobilenet_v1, mobilenet_v2)


def seeded(builder: Callable[..., MobileNet], *arguments: Any, **options: Any) -> MobileNet:
    torch.manual_seed(0)
    return builder(*arguments, **options)


def peaked(model: MobileNet) -> MobileNet:
    """Maps that can be told from uniform ones."""
    with torch.no_grad():
        for layer in model.attention_layers().values():
            for name, parameter in layer.named_parameters():
                parameter.mul_(8 if kind(name) == "pw_weight" else 1)
    return model


def test_v2_has_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        model = mobilenet_v2()
    assert [(name, list(t.shape)) for name, t in model.state_dict().items()] == list(TORCHVISION.items())
    assert sum(p.numel() for p in model.parameters()) == 3_504_872  # as torchvision states it


@pytest.mark.parametrize("attention", ["paper", "upstream"])
def test_torchvisions_checkpoint_loads(attention: str) -> None:
    checkpoint = {
        name: torch.zeros(shape, dtype=torch.int64) if name.endswith("tracked") else torch.randn(shape)
        for name, shape in TORCHVISION.items()
    }
    model = mobilenet_v2(**PLACES, attention=attention)
    missing, unexpected = model.load_state_dict(checkpoint, strict=False)
    own = tuple(f"features.{k}." for k in ("3", "13", "4.ulsam", "16.ulsam"))
    assert missing
    counts = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}  # PyTorch does not miss them
    assert set(missing) - counts == {name for name in model.state_dict() if name.startswith(own)} - counts
    assert all(name.startswith(own) for name in missing)
    assert set(unexpected) == {name for name in checkpoint if name.startswith(("features.3.", "features.13."))}
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in checkpoint.items() if name not in unexpected)


@pytest.mark.parametrize(
    ("builder", "width", "parameters"),
    [  # as Keras states them, less the norms' running statistics, which it counts
        (mobilenet_v1, 1.0, 4_231_976),
        (mobilenet_v1, 0.75, 2_585_560),
        (mobilenet_v1, 0.5, 1_331_592),
        (mobilenet_v2, 0.75, 2_636_424),
        (mobilenet_v2, 0.5, 1_968_680),
    ],
)
def test_widths(builder: Callable[..., MobileNet], width: float, parameters: int) -> None:
    with torch.device("meta"):
        model = builder(width)
    assert count(model, 3, 32, 32).parameters == parameters


def test_v1_is_thirteen_blocks_after_the_stem() -> None:
    with torch.device("meta"):
        model = mobilenet_v1()
        features = model.features
        sizes = [tuple(features[:k](torch.empty(1, 3, 224, 224)).shape[1:]) for k in range(1, 15)]
    assert sizes == [
        (32, 112, 112), (64, 112, 112), (128, 56, 56), (128, 56, 56), (256, 28, 28), (256, 28, 28), (512, 14, 14),
        *[(512, 14, 14)] * 5, (1024, 7, 7), (1024, 7, 7),
    ]  # fmt: skip
    names = list(model.state_dict())
    assert names[:6] == [f"features.0.{n}" for n in ("0.weight", *(f"1.{m}" for m in list_of_a_norm()))]
    assert names[6:18] == [
        f"features.1.conv.{i}.{n}" for i in range(2) for n in ("0.weight", *(f"1.{m}" for m in list_of_a_norm()))
    ]
    assert names[-2:] == ["classifier.1.weight", "classifier.1.bias"]


def list_of_a_norm() -> list[str]:
    return list(nn.BatchNorm2d(1).state_dict())


@pytest.mark.parametrize(("builder", "attention"), [(mobilenet_v1, "paper"), (mobilenet_v2, "upstream")])
def test_ulsams_act_where_they_were_asked_for(builder: Callable[..., MobileNet], attention: str) -> None:
    insert, replace = {1: 4, 5: 2, 12: 8}, {4: 3 if builder is mobilenet_v2 else 4}
    model = peaked(seeded(builder, insert=insert, replace=replace, attention=attention)).eval()
    plain = seeded(builder).eval()
    for name, t in plain.state_dict().items():
        if not name.startswith("features.3."):
            assert torch.equal(model.state_dict()[name], t), "one seed gives one backbone, whatever is inserted"
    layers = model.attention_layers()
    kind = uf.upstream.ULSAM if attention == "upstream" else uf.ULSAM
    assert {k: type(layer) for k, layer in layers.items()} == dict.fromkeys((1, 4, 5, 12), kind)
    assert {k: layer.num_splits for k, layer in layers.items()} == insert | replace
    assert model.features[3] is layers[4]
    x = expected = torch.randn(2, 3, 64, 64)
    for number, layer in enumerate(plain.features, start=1):
        expected = layers[4](expected) if number == 4 else layer(expected)
        if number in insert:
            expected = layers[number](expected)
    expected = plain.classifier(expected.mean((2, 3)))
    torch.testing.assert_close(model(x), expected)
    assert (model(x) - plain(x)).norm() > 1e-2 * expected.norm()


def by_name(state: dict[str, Tensor], x: Tensor, name: str, **options: Any) -> Tensor:
    """A convolution and its norm, in eval mode; the norm's name ends in a number larger by 1."""
    stem, _, last = name.rpartition(".")
    weight, norm = state[f"{name}.weight"], f"{stem}.{int(last) + 1}"
    x = F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=x.shape[1] // weight.shape[1], **options)
    parts = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts)


def v1_by_name(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network of the paper, from a state dict alone."""
    x = by_name(state, x, "features.0.0", stride=2).relu()
    for k in range(1, 14):
        x = by_name(state, x, f"features.{k}.conv.0.0", stride=2 if k in (2, 4, 6, 12) else 1).relu()
        x = by_name(state, x, f"features.{k}.conv.1.0").relu()
    return F.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])


def v2_by_name(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """torchvision's network, from a state dict alone."""
    x = F.relu6(by_name(state, x, "features.0.0", stride=2))
    for k in range(1, 18):
        first, y = int(k > 1), x
        if first:
            y = F.relu6(by_name(state, y, f"features.{k}.conv.0.0"))
        stride = 2 if k in (2, 4, 7, 14) else 1
        y = F.relu6(by_name(state, y, f"features.{k}.conv.{first}.0", stride=stride))
        y = by_name(state, y, f"features.{k}.conv.{first + 1}")
        x = x + y if k in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16) else y
    x = F.relu6(by_name(state, x, "features.18.0"))
    return F.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])


@pytest.mark.parametrize(("builder", "reference"), [(mobilenet_v1, v1_by_name), (mobilenet_v2, v2_by_name)])
def test_the_backbone_computes_what_the_papers_do(
    builder: Callable[..., MobileNet], reference: Callable[[dict[str, Tensor], Tensor], Tensor]
) -> None:
    model = seeded(builder, 0.5, num_classes=5).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(3 / fan_in) ** 0.5)  # activations neither die nor all saturate
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()
            for name, low in (("running_mean", -0.5), ("running_var", 0.5), ("weight", 0.5), ("bias", 0.0)):
                nn.init.uniform_(state[name], low, low + 1)
    x = 3 * torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(model.state_dict(), x), rtol=1e-9, atol=1e-12)


def test_nothing_is_placed_by_default() -> None:
    model = mobilenet_v1(0.25)
    assert model.attention_layers() == {}
    assert not any(isinstance(module, uf.ULSAM) for module in model.modules())


@pytest.mark.parametrize("builder", BUILDERS)
def test_layers_that_can_be_replaced(builder: Callable[..., MobileNet]) -> None:
    wanted = [4, 6, 8, 9, 10, 11, 12, 14] if builder is mobilenet_v1 else [4, 6, 7, 9, 10, 11, 13, 14, 16, 17]
    others = {*range(1, 15 if builder is mobilenet_v1 else 19)} - {*wanted}
    with torch.device("meta"):
        builder(replace=dict.fromkeys(wanted, 1))
        for number in others:
            message = f"replace names layer {number}, .*can be replaced: {', '.join(map(str, wanted))}$"
            with pytest.raises(ValueError, match=message):
                builder(replace={number: 1})


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"insert": {19: 4}}, ValueError, "insert names layer 19; the layers are 1, the stem, to 18"),
        ({"insert": {0: 4}}, ValueError, "insert names layer 0"),
        ({"replace": {2: 1}}, ValueError, "replace names layer 2, .*: 4, 6, 7, 9, 10, 11, 13, 14, 16, 17"),
        ({"insert": {"17": 4}}, TypeError, "insert must have integers as layer numbers, got '17'"),
        ({"insert": {True: 4}}, TypeError, "insert must have integers as layer numbers, got True"),
        ({"insert": [17]}, TypeError, "insert must be a dict of layer number: num_splits, got list"),
        ({"insert": {17: 7}}, ValueError, "insert, layer 17: num_splits must divide.*160 is not divisible by 7"),
        ({"replace": {14: 0}}, ValueError, "replace, layer 14: num_splits must be at least 1"),
        ({"replace": {14: 4.0}}, TypeError, "replace, layer 14: num_splits must be an integer, got 4.0"),
        ({"insert": {14: 4}, "replace": {14: 4}}, ValueError, "insert and replace both name layer 14"),
        ({"attention": "se"}, ValueError, 'attention must be "paper" or "upstream", got \'se\''),
        ({"width": 0}, ValueError, "width must be above 0, got 0"),
        ({"width": "1.0"}, TypeError, "width must be a number"),
        ({"width": float("nan")}, ValueError, "width must be above 0"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"num_classes": 10.0}, TypeError, "num_classes must be an integer"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], part: str) -> None:
    with torch.device("meta"), pytest.raises(error, match=part):
        mobilenet_v2(**options)


def test_initial_weights_are_torchvisions_and_ulsams_own() -> None:
    model = seeded(mobilenet_v2, insert={18: 4}, attention="upstream")
    for name, std in (("0.0", (2 / (32 * 9)) ** 0.5), ("17.conv.2", (2 / 320) ** 0.5), ("18.0", (2 / 1280) ** 0.5)):
        assert float(model.features.get_submodule(name).weight.detach().std()) == pytest.approx(std, rel=0.1), name
    assert float(model.classifier[1].weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not model.classifier[1].bias.any()
    ulsam = model.attention_layers()[18]
    assert isinstance(ulsam, uf.ULSAM)
    for key, bound in (("conv_dws.weight", 1), ("conv_dws.bias", 1), ("conv_point.weight", 80**-0.5)):
        parameter = part(ulsam, key)
        assert bound * 0.95 < float(parameter.detach().abs().max()) <= bound
        assert float(parameter.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("builder", BUILDERS)
def test_any_size_from_32_in_channels_last_too(builder: Callable[..., MobileNet]) -> None:
    model = peaked(builder(0.25, insert={3: 2, 12: 4}, num_classes=7)).eval()
    for size in ((32, 32), (33, 47), (64, 40)):
        x = torch.randn(2, 3, *size)
        expected = model(x)
        assert expected.shape == (2, 7)
        model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
        assert model.features[:6](x).is_contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("attention", ["paper", "upstream"])
def test_a_training_step_reaches_every_parameter(attention: str) -> None:
    model = peaked(mobilenet_v2(0.5, **PLACES | {"replace": {14: 8}}, attention=attention, num_classes=5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    # 96x96: on the 2x2 maps of smaller pictures every window is the whole map, and A uniform whatever the weights
    nn.functional.cross_entropy(model(torch.randn(4, 3, 96, 96)), torch.arange(4)).backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # a norm removes the biases, and all but a trace of the scale, of the convolution before it
    trace = () if attention == "paper" else ("conv_dws.weight", "conv_dws.bias", "conv_point.bias")
    visible = {name: p for name, p in model.named_parameters() if not name.endswith(trace or "-")}
    assert visible.keys() <= changed
    assert all(p.grad is not None and p.grad.any() for p in visible.values())


def test_autocast_computes_in_bfloat16() -> None:
    model = peaked(mobilenet_v2(0.5, insert={5: 2, 17: 4})).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        maps = model.attention_maps(x)
    assert y.dtype == torch.bfloat16
    assert maps[5].dtype == torch.float32
    expected = model(x)
    assert (y.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.slow  # torch.compile traces
@pytest.mark.parametrize(("builder", "attention"), [(mobilenet_v2, "paper"), (mobilenet_v1, "upstream")])
def test_compiles_in_one_graph(builder: Callable[..., MobileNet], attention: str) -> None:
    """The first layers, among which is every kind, and what follows the last."""
    model = peaked(builder(0.25, insert={3: 2, 5: 4}, replace={4: 2}, attention=attention, num_classes=3)).eval()
    del model.features[5:]
    model.classifier = nn.Sequential(nn.Dropout(), nn.LazyLinear(3)).eval()
    x = torch.randn(2, 3, 64, 64)
    model(x)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    weight = next(model.features[3].parameters())
    (dw,) = torch.autograd.grad(compiled(x).square().sum(), weight)
    (expected,) = torch.autograd.grad(model(x).square().sum(), weight)
    torch.testing.assert_close(dw, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["paper", "upstream"])
def test_attention_maps_are_those_of_the_layers_inputs(attention: str) -> None:
    model = peaked(mobilenet_v1(0.25, insert={3: 2}, replace={11: 4}, attention=attention))
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        model.train(mode)
        buffers = {name: t.clone() for name, t in model.attention_layers()[3].named_buffers()}
        maps = model.attention_maps(x)
        assert {k: tuple(a.shape) for k, a in maps.items()} == {3: (2, 2, 16, 16), 11: (2, 4, 4, 4)}
        before = model.features[2].conv(model.features[:2](x))
        layer = model.attention_layers()[3]
        torch.testing.assert_close(maps[3], layer.attention(before))
        for a in maps.values():
            torch.testing.assert_close(a.sum((2, 3)), torch.ones(a.shape[:2]))
        if not mode:
            assert all(torch.equal(t, buffers[name]) for name, t in layer.named_buffers())
    assert not any(layer._forward_pre_hooks for layer in model.attention_layers().values())


def test_unfuse_and_fuse_keep_the_function() -> None:
    model = peaked(mobilenet_v2(0.35, insert={5: 2}, replace={14: 4}, attention="upstream", num_classes=3)).eval()
    x = torch.randn(2, 3, 64, 64)
    expected, names = model(x), list(model.state_dict())
    uf.unfuse(model)
    assert {type(layer) for layer in model.attention_layers().values()} == {uf.reference.ULSAM}
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-5)
    assert list(model.state_dict()) == names
    with pytest.raises(TypeError, match=r"layer 5 is not fused .*uf\.fuse"):
        model.attention_maps(x)
    uf.fuse(model)
    assert {type(layer) for layer in model.attention_layers().values()} == {uf.upstream.ULSAM}
    assert [name for name, _ in uf.fuse.last_report.replaced] == ["features.4.ulsam", "features.13"]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_splits", [2, 8])
def test_flops_are_those_of_the_same_layers_in_eager_mode(num_splits: int, training: bool) -> None:
    fused = uf.upstream.ULSAM(8, num_splits=num_splits).train(training)
    plain = uf.unfuse(fused, inplace=False)
    totals = []
    for layer in (fused, plain):
        x = torch.randn(3, 8, 5, 7, requires_grad=True)
        with FlopCounterMode(display=False) as forward:
            y = layer(x)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        totals.append((forward.get_total_flops(), backward.get_total_flops()))
    assert totals[0] == (4 * 3 * 8 * 35, 8 * 3 * 8 * 35)
    assert totals[0][0] == totals[1][0]
    if num_splits == 8:  # else PyTorch counts the depthwise weights' gradient as if the convolution were dense
        assert totals[0][1] == totals[1][1]


def test_counting_leaves_the_model_alone_and_ignores_its_backend() -> None:
    model = mobilenet_v1(0.25, insert={3: 2}, attention="upstream")
    for layer in model.attention_layers().values():
        layer.backend = "reference"
    state = {name: t.clone() for name, t in model.state_dict().items()}
    found, plain = count(model, 3, 64, 64), count(mobilenet_v1(0.25), 3, 64, 64)
    assert found.macs - plain.macs == 2 * 32 * 16 * 16
    assert found.weights - plain.weights == 2 * 32
    assert found.parameters - plain.parameters == 2 * 32 + 32 + 2 + 2 * (32 + 2)
    assert model.training
    assert model.attention_layers()[3].backend == "reference"
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
