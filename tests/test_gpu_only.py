"""What only a GPU can show: graphs captured and replayed, streams, addresses, a GPU that is not the current one."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(1, 64, 14, 14), (1, 64, 56, 56), (160, 16, 7, 7)]  # few slabs, small and large, and many


def make(form: str, shape: tuple[int, ...], device: str = "cuda") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    channels = shape[1]
    paper, authors = (
        uf.ULSAM(channels, 4, backend="triton"),
        uf.upstream.ULSAM(channels, num_splits=4, backend="triton"),
    )
    layer: nn.Module = paper if form == "paper" else authors
    return layer.to(device), torch.randn(shape, device=device)


def captured(call: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A graph of the call, and the tensors that a replay writes; the call has run three times before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_graph_without_gradient(form: str, shape: tuple[int, ...]) -> None:
    layer, x = make(form, shape)
    layer.eval()
    with torch.no_grad():
        graph, (y,) = captured(lambda: (layer(x),))
        for _ in range(2):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(y, layer(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_graph_of_a_training_step(form: str, shape: tuple[int, ...]) -> None:
    """Forward and backward; with norms also what the forward writes into running statistics."""
    layer, x = make(form, shape)
    twin = copy.deepcopy(layer)
    dy = torch.randn_like(x)

    def step_of(layer: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
        leaves = [x.requires_grad_(), *layer.parameters()]

        def step() -> tuple[Tensor, ...]:
            y = layer(x)
            return y.detach(), *torch.autograd.grad(y, leaves, dy)

        return step

    graph, results = captured(step_of(layer))
    for _ in range(3):
        step_of(twin)()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    expected = step_of(twin)()
    assert len(results) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
    states = zip(layer.state_dict().items(), twin.state_dict().values(), strict=True)
    assert [name for (name, one), other in states if not torch.equal(one, other)] == []


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_misaligned_after_aligned(form: str) -> None:
    """16-byte accesses, for which a kernel was kept, must not reach a view that begins elsewhere."""
    layer, x = make(form, (2, 16, 14, 14))
    layer.eval()
    moved = torch.empty(x.numel() + 1, device="cuda")[1:].view(x.shape).copy_(x)
    assert moved.data_ptr() % 16
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), layer(moved))


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_threads_on_streams_of_their_own(form: str) -> None:
    """New geometries in several threads at once: what is kept of them is kept by all."""
    layer, _ = make(form, (1, 16, 7, 7))
    layer.eval()
    inputs = [torch.randn(n, 16, 7 + n, 7, device="cuda") for n in range(1, 5)]
    torch.cuda.synchronize()
    found: dict[int, list[Tensor]] = {}

    def work(thread: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            found[thread] = [layer(x) for x in inputs for _ in range(3)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        expected = [layer(x) for x in inputs for _ in range(3)]
    assert len(found) == len(threads)
    for results in found.values():
        assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_another_gpu_than_the_current_one(form: str) -> None:
    """The same geometry on both, in turn: each has compiled kernels of its own."""
    (first, x), (second, x_there) = make(form, (2, 16, 14, 14)), make(form, (2, 16, 14, 14), "cuda:1")
    x_there.copy_(x)
    for _ in range(3):
        results = []
        for layer, leaf in ((first, x.requires_grad_()), (second, x_there.requires_grad_())):
            y = layer(leaf)
            results.append((y.detach().cpu(), torch.autograd.grad(y.square().sum(), leaf)[0].cpu()))
        assert torch.cuda.current_device() == 0
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
