"""Tools that look into modules or watch calls: torch.fx, FX quantisation, TorchScript, counters, the profiler."""

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

import ulsam_fused as uf
from ulsam_fused.conversion.pattern import Layers
from ulsam_fused.conversion.shared_weights import SharedULSAM

X = torch.randn(2, 8, 5, 6)


def shared() -> SharedULSAM:
    return SharedULSAM(
        Layers(nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1), nn.BatchNorm2d(1)), 2
    )


def layers() -> list[nn.Module]:
    return [uf.ULSAM(8, 2), uf.upstream.ULSAM(8, num_splits=2), uf.upstream.SubSpace(8), shared()]


class KnowsLeaves(fx.Tracer):
    """A tracer with leaves by type and names by path, as torchvision's feature extraction has it."""

    def __init__(self) -> None:
        super().__init__()
        self.path, self.names = "", {}

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self.path = self.path, self.path_of_module(m)
        try:
            if not self.is_leaf_module(m, self.path):
                return forward(*args, **kwargs)
            return self.create_proxy("call_module", self.path, args, kwargs)
        finally:
            self.path = before

    def create_proxy(self, kind: str, *arguments: Any, **options: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, *arguments, **options)
        self.names[proxy.node] = self.path
        return proxy


def test_fx_sees_one_call() -> None:
    """In whatever tracer; also in a layer that is traced alone, and for the function."""
    for layer in layers():
        model = nn.Sequential(nn.Conv2d(8, 8, 1), layer, nn.ReLU()).eval()
        tracer = KnowsLeaves()
        graph = tracer.trace(model)
        assert [(n.op, n.target) for n in graph.nodes][2] == ("call_module", "1")
        assert list(tracer.names.values())[1:4] == ["0", "1", "2"]
        for traced in (fx.GraphModule(model, graph), fx.symbolic_trace(model)):
            assert torch.equal(traced(X), model(X))
        alone = fx.symbolic_trace(layer)
        alone.graph.lint()
        assert torch.equal(copy.deepcopy(alone)(X), layer(X))
        assert len(list(alone.parameters())) == len(list(layer.parameters()))
    weight = torch.randn(8)
    function = fx.symbolic_trace(lambda x, w: uf.subspace_attention(x, w, w, 2))
    assert [n.target for n in function.graph.nodes if n.op == "call_function"] == [uf.subspace_attention]
    assert torch.equal(function(X, weight), uf.subspace_attention(X, weight, weight, 2))


@pytest.mark.slow  # the first use of quantised kernels
@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated
def test_fx_quantisation_goes_around_the_layer() -> None:
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    layer = uf.upstream.ULSAM(8, num_splits=2)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), layer, nn.Conv2d(8, 8, 1)).eval()
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (X,))
    prepared(X)
    quantised = quantize_fx.convert_fx(prepared)
    assert type(quantised.get_submodule("1")) is uf.upstream.ULSAM
    assert "quantized" in type(quantised.get_submodule("2")).__module__
    expected = model(X)
    assert (quantised(X) - expected).norm() < 0.05 * expected.norm()


def test_script_says_what_to_do_and_unfuse_does_it() -> None:
    for layer in layers()[1:3]:
        model = nn.Sequential(layer, nn.ReLU()).eval()
        with pytest.raises(TypeError, match=r"torch.jit.script cannot compile .*uf.unfuse\(model, inplace=False\)"):
            torch.jit.script(model)
        torch.testing.assert_close(torch.jit.trace(model, X)(X) - X, model(X) - X)
        plain = uf.unfuse(model, inplace=False)
        for made in (torch.jit.script(plain), fx.symbolic_trace(plain)):
            assert torch.equal(made(X), plain(X))


def test_counters_made_before_the_first_call_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second import; forward and backward in two counters."""
    for name in ("forward", "backward", "norm_forward", "norm_backward"):
        monkeypatch.delitem(flop_counter.flop_registry, getattr(torch.ops.ulsam_fused, name), raising=False)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    x = X.clone().requires_grad_()
    with forward:
        y = uf.upstream.ULSAM(8, num_splits=2, backend="torch")(x)
    with backward:
        y.sum().backward()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (4 * x.numel(), 8 * x.numel())


def ranges(call: Any) -> set[str]:
    with torch.profiler.profile() as profile:
        call()
    return {event.name.removeprefix("ulsam_fused::") for event in profile.events() if "ulsam_fused::" in event.name}


def test_direct_calls_are_ranges_in_a_profiler() -> None:
    x = X.clone().requires_grad_()
    layer = uf.upstream.ULSAM(8, num_splits=2, backend="torch")
    assert ranges(lambda: layer(x).sum().backward()) == {"torch::norm_forward", "torch::norm_backward"}
    layer.eval()
    with torch.no_grad():
        assert ranges(lambda: layer(x)) == {"torch::folded_forward"}
    with FlopCounterMode(display=False):
        assert "forward" in ranges(lambda: uf.ULSAM(8, 2, backend="torch")(x))
