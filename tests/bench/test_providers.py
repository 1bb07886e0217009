"""What is timed computes what it should, and the ceiling moves as few bytes as the work can."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ulsam_fused.bench import calls, cases, directions, providers
from ulsam_fused.bench.workload import Workload

CPU = torch.device("cpu")


def test_the_ceiling_moves_as_many_bytes_as_the_work_has_to() -> None:
    """Counted by the operators that it calls, of which each reads its inputs and writes its output once."""

    class Passes(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += {"aten::copy_": 2, "aten::add.out": 3}[func.name()]
            return func(*args, **(kwargs or {}))

    counted = {}
    for name in directions.DIRECTIONS:
        workload = Workload("2x4x3x3/g2", name, "float32", "nchw", CPU)
        move = calls.ceiling(calls.inputs(workload, 1), name)
        with Passes() as passes:
            move(0)
        counted[name] = passes.count
        assert passes.count * 2 * 4 * 3 * 3 * 4 == workload.floor
    assert counted == {"forward": 2, "backward": 3, "forward+backward": 5, "train-norm": 10}


@pytest.mark.parametrize("layout", list(cases.LAYOUTS))
@pytest.mark.parametrize("num_splits", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_providers_compute_their_form(num_splits: int, layout: str, training: bool) -> None:
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64).contiguous(memory_format=cases.LAYOUTS[layout])
    sources = providers.Sources.make(x, num_splits, training)
    with torch.no_grad():
        for subspace in sources.upstream.subspaces:
            for parameter in subspace.parameters():
                parameter.copy_(torch.randn_like(parameter))  # norms that do something
        forms = {"paper": sources.paper(x), "upstream": sources.upstream(x)}
        assert (forms["paper"] - forms["upstream"]).norm() > 0.01
        for provider in providers.providers(["torch"], compiled=False):
            y = provider.build(sources)(x)
            assert (y - forms[provider.form]).norm() < 1e-12 * (y - x).norm(), provider.name
            assert y.stride() == x.stride() or provider.name in ("eager", "paper-eager")


@pytest.mark.slow  # imports PyTorch's compiler
def test_a_compiled_provider_leaves_the_plain_one_alone() -> None:
    found = {provider.name: provider for provider in providers.providers([], compiled=True)}
    assert list(found) == ["eager", "paper-eager", "vectorised", "eager+compile", "vectorised+compile"]
    sources = providers.Sources.make(torch.randn(1, 4, 3, 3), 2, training=False)
    compiled = found["eager+compile"].build(sources)
    assert compiled._compiled_call_impl is not None
    assert found["eager"].build(sources)._compiled_call_impl is None


@pytest.mark.slow  # exports a model
def test_onnx_runtime_computes_the_papers_form() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 8, 7, 6)
    (found,) = [p for p in providers.providers([], compiled=False, onnx=True) if p.name == "vectorised+onnx"]
    assert found.takes_part("forward")
    assert not any(found.takes_part(direction) for direction in directions.DIRECTIONS if direction != "forward")
    sources = providers.Sources.make(x, 2, training=False)
    torch.testing.assert_close(found.build(sources)(x) - x, sources.paper(x).detach() - x, rtol=1e-4, atol=1e-6)
