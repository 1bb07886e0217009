"""The recipe: learning rates, parameter groups, the average of weights, accuracies."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ulsam_fused as uf
from tests.helpers.processes import ROOT
from ulsam_fused.console import model_options
from ulsam_fused.console.errors import UserError
from ulsam_fused.models import published
from ulsam_fused.train import metrics, options, pretrained, recipe


def _args(*words: str) -> options.Options:
    return options.parse(["--data", "d", "--output", "o", *words])


def test_the_cosine_starts_high_and_ends_at_nothing() -> None:
    rate = recipe.learning_rate(_args("--epochs", "10", "--lr", "0.4"), 5)
    assert rate(0, 0) == 0.4
    assert rate(5, 0) == pytest.approx(0.2)
    assert 0 < rate(9, 4) < 0.001
    rates = [rate(epoch, step) for epoch in range(10) for step in range(5)]
    assert rates == sorted(rates, reverse=True)


def test_warmup_and_steps() -> None:
    rate = recipe.learning_rate(_args("--schedule", "step", "--lr", "1", "--step-epochs", "3", "--warmup", "2"), 5)
    assert [rate(0, 0), rate(1, 4), rate(2, 0)] == pytest.approx([0.1, 1.0, 1.0])
    assert [rate(3, 0), rate(6, 4)] == pytest.approx([0.1, 0.01])
    warm = recipe.learning_rate(_args("--epochs", "12", "--warmup", "2"), 5)
    assert [warm(2, 0), warm(7, 0)] == pytest.approx([0.05, 0.025])


def test_norms_and_biases_are_spared_the_decay_and_vectors_of_weights_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), uf.upstream.ULSAM(4, num_splits=2), uf.ULSAM(4, 2))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = recipe.parameter_groups(model, 0.1, no_norm_decay=True)
    of_subspaces = {f"2.subspaces.{k}.{name}.weight" for k in (0, 1) for name in ("conv_dws", "conv_point")}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", *of_subspaces, "3.dw_weight", "3.pw_weight"}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    (everything,) = recipe.parameter_groups(model, 0.1, no_norm_decay=False)
    assert len(everything["params"]) == len(names)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("rmsprop", torch.optim.RMSprop)])
def test_the_optimizer_gets_what_was_asked_for(name: str, kind: type) -> None:
    made = recipe.optimizer(nn.Linear(2, 2), _args("--optimizer", name, "--momentum", "0.8", "--lr", "0.3"))
    assert type(made) is kind
    assert (made.defaults["momentum"], made.defaults["lr"]) == (0.8, 0.3)
    assert made.param_groups[0]["weight_decay"] == 4e-5


def test_the_average_follows_its_definition() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    average = recipe.Average(model, 0.5)
    expected = {name: t.clone() for name, t in model.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model(torch.randn(4, 3, dtype=torch.float64))
        average.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, t in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * t if t.is_floating_point() else t.clone()
    for name, t in average.module.state_dict().items():
        torch.testing.assert_close(t, expected[name])
    assert not average.module.training
    assert average.module[1].num_batches_tracked == 12


def test_top_1_and_top_5() -> None:
    logits = torch.zeros(4, 10)
    logits[:, :6] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    totals = metrics.Totals(torch.device("cpu"))
    totals.add(torch.tensor(2.0), logits, torch.tensor([0, 1, 4, 5]))
    totals.add(torch.tensor(5.0), torch.full((2, 10), torch.nan), torch.tensor([0, 0]))
    found = metrics.scores(totals.sums)
    assert (found.images, found.loss) == (6, 3.0)
    assert (found.top1, found.top5) == pytest.approx((100 / 6, 300 / 6))


def test_fewer_than_five_classes() -> None:
    totals = metrics.Totals(torch.device("cpu"))
    totals.add(torch.tensor(0.0), torch.eye(3), torch.tensor([0, 1, 0]))
    assert metrics.scores(totals.sums).top5 == 100
    assert metrics.scores(torch.zeros(4)).loss == 0


def test_a_classifier_of_other_classes_is_left_out_and_said(tmp_path: Path) -> None:
    there = uf.models.mobilenet_v2(0.1, num_classes=7)
    torch.save({**there.state_dict(), "extra": torch.ones(1)}, tmp_path / "w.pth")
    here = uf.models.mobilenet_v2(0.1, insert={14: 4}, num_classes=3)
    before = copy.deepcopy(here.state_dict())
    lines = "\n".join(pretrained.load(tmp_path / "w.pth", here))
    assert "left out, as the file has other classes: classifier.1.weight, classifier.1.bias" in lines
    assert "not in the file, and random: features.13.ulsam.dw_weight, features.13.ulsam.pw_weight" in lines
    assert "in the file only: extra" in lines
    for name, t in here.state_dict().items():
        kept = name.startswith("classifier") or "ulsam" in name
        assert torch.equal(t, before[name] if kept else there.state_dict()[name]), name


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(uf.models.mobilenet_v2(0.2).state_dict(), tmp_path / "wide.pth")
    torch.save({"w": torch.ones(3)}, tmp_path / "other.pth")
    model = uf.models.mobilenet_v2(0.1)
    with pytest.raises(UserError, match=r"wide\.pth: of another model: features.* is \[.*\] there and \[.*\] here"):
        pretrained.load(tmp_path / "wide.pth", model)
    with pytest.raises(UserError, match="none of its 1 names is known here"):
        pretrained.load(tmp_path / "other.pth", model)


@pytest.mark.slow  # builds a network for each command
def test_the_commands_of_the_documentation_are_those_of_the_published_models() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    starts = dict(re.findall(r'^([TF])="python -m ulsam_fused\.train (.*)"$', text, re.MULTILINE))
    found = re.findall(r"^\$([TF])([^#\n]*)", text, re.MULTILINE)
    commands = [f"{starts[name]} {rest}".split() for name, rest in found]
    assert len(commands) > 15
    known = [(row.backbone, row.width, row.insert, row.replace) for row in published.rows()]
    for words in commands:
        args = options.parse(words)
        with torch.device("meta"):
            model = model_options.build(args)
        name = {"mobilenet_v1": "MobileNet-V1", "mobilenet_v2": "MobileNet-V2"}[args.model]
        assert (name, args.width, model.insert, model.replace) in known, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "must be at least 1"),
        (["--lr", "-1"], "must be from 0 to inf"),
        (["--size", "300"], "--resize must not be below --size 300"),
        (["--ema", "2"], "must be from 0 to 1"),
        (["--lr", "nan"], "must be from 0"),
        (["--layout", "mnist"], "invalid choice"),
    ],
)
def test_options_out_of_range(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _args(*words)
