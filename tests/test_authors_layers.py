"""The layers inside the authors' form: every tool sees them as the authors', and the operator sees vectors."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.utils import parametrize, skip_init

import ulsam_fused as uf
from tests.helpers.authors import assert_close, assert_same_step, pair, step

X, DY = torch.randn(2, 2, 6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
MOVED = "they do not lie behind each other"


def one_step(module: nn.Module) -> dict[str, Tensor]:
    """y - x, dx - dy, all gradients and all buffers of a training step, and the maps before it."""
    with torch.no_grad():
        maps = module.attention(X)
    y, dx = step(module, X, DY)
    gradients = {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"A": maps, "y - x": y - X, "dx - dy": dx - DY} | gradients | dict(module.named_buffers())


def assert_equal_steps(one: nn.Module, other: nn.Module) -> None:
    """To the bit."""
    found, expected = one_step(one), one_step(other)
    assert found.keys() == expected.keys()
    assert [name for name, t in found.items() if not torch.equal(t, expected[name])] == []


def test_names_shapes_types_and_classes_are_theirs() -> None:
    for theirs, ours in (
        (uf.reference.ULSAM(6, 3), uf.upstream.ULSAM(6, num_splits=3)),
        (uf.reference.SubSpace(6), uf.upstream.SubSpace(6)),
    ):
        for listed in ("named_parameters", "named_buffers"):
            described = [
                [(name, t.shape, t.dtype, type(t), t.stride()) for name, t in getattr(m, listed)()]
                for m in (ours, theirs)
            ]
            assert described[0] == described[1]
        modules = [[(name, type(module).__name__) for name, module in m.named_modules()] for m in (ours, theirs)]
        assert modules[0] == modules[1]
        assert str(list(ours.modules())[2:]) == str(list(theirs.modules())[2:])
        for shown in (ours.state_dict(), ours.state_dict(keep_vars=True)):
            assert list(shown) == list(theirs.state_dict())
    assert ours.state_dict(keep_vars=True)["conv_dws.weight"] is ours.conv_dws.weight


def test_every_tensor_has_a_storage_of_its_own() -> None:
    """Of no more than its own size: safetensors, accelerate and torch.save go by storages."""
    _, ours = pair(6, 3)
    assert ours.joins(X) is None
    for tensors in (ours.state_dict(), dict(ours.named_parameters()), dict(ours.named_buffers())):
        storages = [t.untyped_storage() for t in tensors.values()]
        assert len({storage._cdata for storage in storages}) == len({storage.data_ptr() for storage in storages})
        assert [s.nbytes() for s in storages] == [t.numel() * t.element_size() for t in tensors.values()]


def test_tools_that_save(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model, again = (nn.Sequential(nn.Conv2d(3, 6, 1), uf.upstream.ULSAM(6, num_splits=3)) for _ in range(2))
    safetensors.save_model(model, tmp_path / "model.safetensors")
    safetensors.load_model(again, tmp_path / "model.safetensors")
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in model.state_dict().items())
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    accelerator.save_model(model, tmp_path / "saved")
    assert safetensors.load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()
    prepared = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path / "state"))
    expected = copy.deepcopy(prepared.state_dict())
    prepared(torch.randn(2, 3, 4, 4))
    with torch.no_grad():
        for p in prepared.parameters():
            p.zero_()
    accelerator.load_state(str(tmp_path / "state"))
    assert all(torch.equal(t, expected[key]) for key, t in prepared.state_dict().items())


def through_meta(ours: nn.Module) -> nn.Module:
    state = copy.deepcopy(ours.state_dict())
    ours.to("meta").to_empty(device="cpu").load_state_dict(state)
    return ours


def assigned(ours: nn.Module) -> nn.Module:
    ours.load_state_dict(copy.deepcopy(ours.state_dict()), assign=True)
    return ours


def saved(ours: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def through_dcp(ours: nn.Module) -> nn.Module:
    set_model_state_dict(ours, copy.deepcopy(get_model_state_dict(ours)))
    return ours


def skipped(ours: nn.Module) -> nn.Module:
    new = skip_init(uf.upstream.ULSAM, 6, num_splits=3, eps=0.1, dtype=torch.float64, backend="torch")
    new.load_state_dict(ours.state_dict())
    return new


def swapped(ours: nn.Module) -> nn.Module:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return ours.float().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


KEPT_FLAT: list[Callable[[Any], nn.Module]] = [
    copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved, lambda m: m.to(torch.float32).double(),
    through_meta, assigned, through_dcp, skipped, swapped, lambda m: m.to(memory_format=torch.channels_last),
]  # fmt: skip


def test_what_keeps_the_tensors_behind_each_other() -> None:
    for change in KEPT_FLAT:
        _, ours = pair(6, 3)
        ours.float().double()
        other = copy.deepcopy(ours)
        twin = change(other)
        assert twin.joins(X) is None, change
        assert_equal_steps(twin, ours)
        if twin is not other:
            assert other.joins(X) is None, change  # nor does it take them from the layer that was copied


def test_a_shallow_copy_has_the_same_parameters() -> None:
    _, ours = pair(6, 3)
    assert all(p is q for p, q in zip(copy.copy(ours).parameters(), ours.parameters(), strict=True))


def new_data(m: Any) -> None:
    m.subspaces[1].conv_point.weight.data = m.subspaces[1].conv_point.weight.data.clone()


def new_parameter(m: Any) -> None:
    m.subspaces[2].bn_dws.bias = nn.Parameter(m.subspaces[2].bn_dws.bias.detach().clone())


def new_buffer(m: Any) -> None:
    m.subspaces[0].bn_point.running_var = m.subspaces[0].bn_point.running_var.clone()


def new_count(m: Any) -> None:
    m.subspaces[0].bn_point.num_batches_tracked = m.subspaces[0].bn_point.num_batches_tracked.clone()


class Copied(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return t.clone()


def parametrized(m: Any) -> None:
    parametrize.register_parametrization(m.subspaces[1].conv_dws, "weight", Copied())


def tied(m: Any) -> None:
    m.subspaces[1].conv_dws.bias = m.subspaces[0].conv_dws.bias
    m.flatten_parameters()


MOVES = [new_data, new_parameter, new_buffer, new_count, parametrized, tied, lambda m: m.share_memory()]


@pytest.mark.parametrize("training", [True, False])
def test_moved_tensors_are_joined(training: bool) -> None:
    """To the same bits, before and after a call that has seen them flat."""
    for move in MOVES:
        for seen in (False, True):
            _, ours = pair(6, 3)
            ours.train(training)
            with torch.no_grad():
                ours.subspaces[1].conv_dws.bias.copy_(ours.subspaces[0].conv_dws.bias)
                other = copy.deepcopy(ours)
                if seen:
                    for m in (ours, other):
                        m(X)
            move(ours)
            found, expected = one_step(ours), one_step(other)
            if move is tied:
                for results in (found, expected):
                    for i in range(2):
                        results.pop(f"gradient of subspaces.{i}.conv_dws.bias", None)
            if move is parametrized:
                name = "gradient of subspaces.1.conv_dws.weight"
                expected["gradient of subspaces.1.conv_dws.parametrizations.weight.original"] = expected.pop(name)
            assert found.keys() == expected.keys()
            assert [name for name, t in found.items() if not torch.equal(t, expected[name])] == [], move
            assert ours.joins(X).startswith(MOVED), move
            assert f"parameters: joined into vectors first, since {MOVED}" in uf.explain(X, ours)


def test_flatten_parameters_puts_them_back() -> None:
    _, ours = pair(6, 3)
    other = copy.deepcopy(ours)
    new_data(ours)
    parameters = list(ours.parameters())
    ours.flatten_parameters()
    assert ours.joins(X) is None
    assert all(p is q for p, q in zip(ours.parameters(), parameters, strict=True))
    assert_equal_steps(ours, other)


def test_transforms_and_functional_calls() -> None:
    _, ours = pair(6, 3)
    state = {key: t.clone() for key, t in ours.state_dict().items()}
    assert_close("state", torch.func.functional_call(ours, state, (X,)) - X, copy.deepcopy(ours)(X) - X)
    assert state["subspaces.1.bn_dws.num_batches_tracked"] == 1  # written into what was given
    assert ours.subspaces[1].bn_dws.num_batches_tracked == 0
    torch.func.functional_call(ours, ours.state_dict(), (X,))
    assert ours.subspaces[1].bn_dws.num_batches_tracked == 1
    ours.eval()
    given = dict(ours.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return ((torch.func.functional_call(ours, parameters, (X,)) - X) * DY).sum()

    gradients = torch.func.grad(loss)(given)
    ((ours(X) - X) * DY).sum().backward()
    for name, p in ours.named_parameters():
        assert_close(name, gradients[name], p.grad, 1e-13)
    tangents = {name: torch.randn_like(p) for name, p in given.items()}
    _, forward = torch.func.jvp(loss, (given,), (tangents,))
    assert_close("jvp", forward, sum((gradients[name] * t).sum() for name, t in tangents.items()))


def test_writes_reach_the_operator_and_its_updates_reach_the_buffers() -> None:
    theirs, ours = pair(6, 3)
    assert_same_step(theirs, ours, X, DY)
    for module in (theirs, ours):
        with torch.no_grad():
            module.state_dict()["subspaces.2.conv_point.weight"].mul_(-2)
            module.subspaces[0].bn_dws.running_mean += 1
        module.subspaces[1].bn_point.weight.data.fill_(3)
        module.subspaces[1].bn_dws.reset_running_stats()
    assert ours.joins(X) is None
    for training in (True, False):
        assert_same_step(theirs.train(training), ours.train(training), X, DY)


@pytest.mark.parametrize("learns", ["all", "x"])
def test_a_write_between_forward_and_backward_raises(learns: str) -> None:
    """As in PyTorch."""
    for key in ("conv_dws.weight", "bn_dws.weight", "conv_point.weight", "bn_point.weight", "bn_point.bias"):
        _, ours = pair(6, 3)
        ours.eval().requires_grad_(learns == "all")
        for _ in range(2):
            y = ours(X.clone().requires_grad_())
            y.sum().backward(retain_graph=True)
            with torch.no_grad():
                ours.get_parameter(f"subspaces.1.{key}").mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()


def test_second_derivatives_and_gradients_of_some() -> None:
    theirs, ours = pair(6, 3)
    for module in (theirs, ours):
        module.subspaces[1].requires_grad_(False)
        module.subspaces[2].bn_point.bias.requires_grad_(False)
    assert_same_step(theirs, ours, X, DY)
    found = []
    for module in (theirs, ours):
        x = X.clone().requires_grad_()
        weights = [module.subspaces[0].conv_point.weight, module.subspaces[2].bn_dws.weight]
        first = torch.autograd.grad(((module(x) - x) * DY).sum(), [x, *weights], create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), [x, *weights]))
    for theirs_found, ours_found in zip(*found, strict=True):
        assert_close("second derivative", ours_found, theirs_found, 1e-12)


def test_their_optimizer_and_average_continue_here() -> None:
    theirs, ours = pair(6, 3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (theirs, ours)]
    step(theirs, X, DY)
    optimizers[0].step()
    ours.load_state_dict(theirs.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    averages = []
    for module, optimizer in zip((theirs, ours), optimizers, strict=True):
        average = {key: t.clone() for key, t in module.state_dict().items()}
        for _ in range(2):
            step(module, X, DY)
            optimizer.step()
            for key, t in module.state_dict().items():
                average[key] = average[key] * 0.5 + t * 0.5
        averages.append(average)
    for key, t in averages[0].items():
        assert_close(key, averages[1][key], t, 1e-9 if "conv" in key or "running_mean" in key else 0.0)
    assert averages[1]["subspaces.1.bn_dws.num_batches_tracked"] > 2


def test_unfused_layers_are_seen_through() -> None:
    forms = [
        uf.ULSAM(6, 3), uf.ULSAM(6, 3, bias=True, norm="batch", activation="relu"), uf.upstream.ULSAM(6, num_splits=3),
        nn.Sequential(uf.upstream.SubSpace(6)),
    ]  # fmt: skip
    x = torch.randn(2, 3, 5, 4)
    for layer in forms:
        model = uf.unfuse(nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.ReLU())).eval()
        traced = torch.fx.symbolic_trace(model)
        assert {"maxpool", "softmax"} <= {str(node.target).rsplit(".", 1)[-1] for node in traced.graph.nodes}
        for other in (traced, torch.jit.script(model)):
            torch.testing.assert_close(other(x), model(x))
