"""Other people's libraries: the code of docs/libraries.md, and what it has made. Each is run where it is installed."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import ulsam_fused as uf
from tests.helpers.processes import ROOT

PAGE = (ROOT / "docs" / "libraries.md").read_text(encoding="utf-8")


def made_by(title: str) -> dict[str, Any]:
    """The names that the code below a title has defined."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(code, f"docs/libraries.md, {title}", "exec"), names)
    return names


def attentions(model: nn.Module) -> list[uf.ULSAM]:
    return [module for module in model.modules() if isinstance(module, uf.ULSAM)]


@pytest.mark.slow  # imports timm and torchvision, and makes five networks
def test_timm() -> None:
    pytest.importorskip("timm", exc_type=ImportError)
    names = made_by("timm")
    assert [layer.num_splits for layer in [names["layer"], *attentions(names["resnet"])]] == [4] * 9
    assert len(attentions(names["efficientnet"])) == 16
    assert len(names["maps"]) == 5
    names["maps"][-1].square().sum().backward()  # the sum alone does not depend on what stands before a norm
    layers = attentions(names["features"])
    assert layers
    assert all(layer.pw_weight.grad is not None and layer.pw_weight.grad.abs().sum() > 0 for layer in layers)

    model = names["model"]
    (fused,) = attentions(model)
    assert isinstance(fused, uf.upstream.ULSAM)
    assert len(uf.fuse.last_report.replaced) == 1
    plain = uf.unfuse(copy.deepcopy(model))
    x = torch.randn(2, 3, 64, 64)
    inputs: list[torch.Tensor] = []
    hook = fused.register_forward_hook(lambda module, args, y: inputs.extend((args[0], y)))
    y = model(x)
    hook.remove()
    torch.testing.assert_close(y, plain(x))
    (authors,) = [module for module in plain.modules() if isinstance(module, uf.reference.ULSAM)]
    torch.testing.assert_close(inputs[1] - inputs[0], authors(inputs[0]) - inputs[0])


@pytest.mark.slow  # imports torchvision
def test_torchvision() -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    names = made_by("torchvision")
    assert names["unexpected"] == []
    assert names["missing"]
    assert all("ulsam" in name or "attention" in name for name in names["missing"]), names["missing"]


def test_mmengine() -> None:
    pytest.importorskip("mmengine", exc_type=ImportError)
    layer = made_by("mmengine")["layer"]
    assert isinstance(layer, uf.ULSAM)
    assert (layer.channels, layer.num_splits) == (64, 4)


def test_mmcv() -> None:
    """mmcv-lite is enough."""
    pytest.importorskip("mmcv", exc_type=ImportError)
    names = made_by("mmcv")
    layer = names["layer"]
    assert names["name"] == "subspace_attention_1"
    assert isinstance(layer, uf.ULSAM)
    assert (layer.channels, layer.num_splits) == (64, 4)
    assert layer(torch.randn(2, 64, 5, 4)).shape == (2, 64, 5, 4)
