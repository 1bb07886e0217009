"""Call `fuse` and check what its report says, and that nothing else has changed."""

import copy

import torch
from torch import nn

import ulsam_fused as uf

X = torch.randn(2, 12, 5, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def fused(model: nn.Module, *, inplace: bool = True) -> nn.Module:
    """`fuse`, checked to draw no random numbers."""
    state = torch.get_rng_state()
    result = uf.fuse(model, inplace=inplace)
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn"
    return result


def replaced() -> dict[str, str]:
    return dict(uf.fuse.last_report.replaced)


def refused() -> dict[str, str]:
    return dict(uf.fuse.last_report.refused)


def assert_untouched(model: nn.Module, name: str, reason: str) -> None:
    """`fuse` refuses this module alone, for this reason, and leaves the model's modules and tensors as they were."""
    modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
    assert fused(model) is model
    assert replaced() == {}
    assert list(refused()) == [name], str(uf.fuse.last_report)
    assert reason in refused()[name]
    assert list(model.modules()) == modules
    for key, t in model.state_dict().items():
        assert torch.equal(t, before[key]), key


def assert_untouched_structure(model: nn.Module, reason: str) -> None:
    """`assert_untouched` for a model whose tensors cannot be copied."""
    modules = list(model.modules())
    assert fused(model) is model
    assert list(model.modules()) == modules
    assert replaced() == {}
    assert reason in refused()[""]


def assert_equal_state(one: nn.Module, other: nn.Module) -> None:
    for (key, a), (other_key, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert key == other_key
        assert torch.equal(a, b), key
