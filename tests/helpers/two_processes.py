"""A script: trains on two gloo processes and on one, and compares. Argument: the file where processes meet."""

import contextlib
import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # else each process imports it
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import ulsam_fused as uf
from ulsam_fused.conversion.pattern import Layers
from ulsam_fused.conversion.shared_weights import SharedULSAM

WORLD = 2
PARTS = (slice(0, 2), slice(2, 5))  # unequal batches
EXACT = 1e-11


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), uf.upstream.ULSAM(6, num_splits=2, eps=0.1), nn.Conv2d(6, 6, 1),
        uf.ULSAM(6, 3, bias=True, norm="batch", activation="relu", eps=0.1),
    ).double()  # fmt: skip
    with torch.no_grad():
        for norm in last_norms(net):
            norm.weight.mul_(4)
    return net


def last_norms(net: nn.Module) -> list[Any]:
    """Those of the logits, in every layer."""
    return [module for name, module in net.named_modules() if name.endswith(("pw_norm", "bn_point"))]


def convolution(net: nn.Module) -> nn.Conv2d:
    """The first layer, whose gradient has passed all others."""
    return next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))


def fused(net: nn.Module) -> list[uf.ULSAM]:
    """The authors' form, then the general one."""
    return [layer for layer in net.modules() if isinstance(layer, uf.ULSAM)]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, dy = (torch.randn(5, c, 5, 4, dtype=torch.float64, generator=generator) for c in (3, 6))
    return x, dy


def close(what: str, ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-3)
    assert error <= EXACT, f"rank {dist.get_rank()}: {what} is off by {error:.1e}"


def close_steps(rank: int, call: Callable[[Tensor], Tensor], net: nn.Module, one: nn.Module) -> None:
    """One step of both: y, and the gradient that has passed all layers."""
    x, dy = batch(0)
    y, expected = call(x[PARTS[rank]]), one(x)
    close("y", y, expected[PARTS[rank]])
    y.backward(dy[PARTS[rank]])
    expected.backward(dy)
    total = convolution(net).weight.grad.clone()
    dist.all_reduce(total)
    close("gradient", total, convolution(one).weight.grad)


def synchronised(rank: int) -> None:
    """Values, gradients and running statistics of two processes equal one process on the joined batch."""
    net = uf.sync_batchnorm(model())
    one = model()
    ddp = DistributedDataParallel(net)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (net, one)]
    for step in range(3):
        x, dy = batch(step)
        mine, joined = x[PARTS[rank]].requires_grad_(), x.clone().requires_grad_()
        for optimizer in optimizers:
            optimizer.zero_grad()
        y, expected = ddp(mine), one(joined)
        close("y", y, expected[PARTS[rank]])
        y.backward(WORLD * dy[PARTS[rank]])  # DistributedDataParallel divides by the processes
        expected.backward(dy)
        close("dx", mine.grad, WORLD * joined.grad[PARTS[rank]])
        for (name, p), q in zip(net.named_parameters(), one.parameters(), strict=True):
            close(f"gradient of {name}", p.grad, q.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert all(norm.num_batches_tracked == 3 for norm in last_norms(net))
    for name, t in one.named_buffers():
        close(name, net.get_buffer(name).double(), t.double())
    with torch.no_grad():
        x, _ = batch(9)
        close("y in eval", net.eval()(x), one.eval()(x))


def separate(rank: int) -> None:
    """Without synchronisation each process has its own statistics; gradients are averaged all the same."""
    net, alone = model(), model()
    ddp = DistributedDataParallel(net)
    for step in range(2):  # a second step raises where a parameter had no gradient
        x, dy = batch(step)
        ddp(x[PARTS[rank]]).backward(dy[PARTS[rank]])
        alone(x[PARTS[rank]]).backward(dy[PARTS[rank]])
    mean = torch.cat([p.grad.flatten() for p in alone.parameters()])
    dist.all_reduce(mean)
    close("gradients", torch.cat([p.grad.flatten() for p in net.parameters()]), mean / WORLD)
    own = last_norms(alone)[0].running_mean
    means = [torch.empty_like(own) for _ in range(WORLD)]
    dist.all_gather(means, own)
    assert not torch.equal(*means)


def empty_batch(rank: int) -> None:
    """A process without images takes part in the exchange, and the other one is not disturbed."""
    net, one = uf.sync_batchnorm(model()), model()
    x, dy = batch(0)
    part = slice(0, 5) if rank == 1 else slice(0, 0)
    y, expected = net(x[part]), one(x)
    y.backward(dy[part])
    expected.backward(dy)
    if rank == 1:
        close("y", y, expected)
        for (name, p), q in zip(net.named_parameters(), one.parameters(), strict=True):
            close(f"gradient of {name}", p.grad, q.grad)
    for name, t in one.named_buffers():
        close(name, net.get_buffer(name).double(), t.double())


def one_value_per_process(rank: int) -> None:
    """One value per channel in each process is enough where two share them."""
    torch.manual_seed(rank)
    layer = uf.sync_batchnorm(uf.upstream.ULSAM(4, num_splits=2))
    assert torch.isfinite(layer(torch.randn(1, 4, 1, 1))).all()
    with contextlib.suppress(ValueError):
        uf.upstream.ULSAM(4, num_splits=2)(torch.randn(1, 4, 1, 1))
        raise AssertionError("one value was normalised")


def converted(rank: int) -> None:
    """torch.nn.SyncBatchNorm.convert_sync_batchnorm finds the norms, and they are synchronised."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(model())
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in last_norms(net))
    one = model()
    close_steps(rank, net, net, one)
    assert list(fused(net)[0].state_dict()) == list(fused(one)[0].state_dict())


def compiled(rank: int) -> None:
    """torch.compile leaves what it cannot capture to eager PyTorch; one process compiles, the other does not."""
    net, one = uf.sync_batchnorm(model()[:2]), model()[:2]
    close_steps(rank, torch.compile(net, backend="eager") if rank == 0 else net, net, one)
    for name, t in one.named_buffers():
        close(name, net.get_buffer(name).double(), t.double())


def shared_weights(rank: int) -> None:
    """The variant whose subspaces share their weights is synchronised, too."""
    torch.manual_seed(0)
    layers = Layers(nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    one = SharedULSAM(layers, 2).double()
    net = uf.sync_batchnorm(copy.deepcopy(one))
    x = torch.randn(5, 6, 5, 4, dtype=torch.float64)
    close("y - x", net(x[PARTS[rank]]) - x[PARTS[rank]], (one(x) - x)[PARTS[rank]])
    for name, t in one.named_buffers():
        close(name, net.get_buffer(name).double(), t.double())


def fully_sharded(rank: int) -> None:
    """FSDP2 trains it, and its synchronised statistics equal one process's."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    net, one = uf.sync_batchnorm(model()), model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in fused(net):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (net, one)]
    for step in range(2):
        x, dy = batch(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        y, expected = net(x[PARTS[rank]]), one(x)
        close("y", y, expected[PARTS[rank]])
        y.backward(WORLD * dy[PARTS[rank]])
        expected.backward(dy)
        for (name, p), q in zip(net.named_parameters(), one.parameters(), strict=True):
            assert isinstance(p.grad, DTensor)
            close(f"gradient of {name}", p.grad.full_tensor(), q.grad)
        for optimizer in optimizers:
            optimizer.step()
    written, expected_state = net.state_dict(), copy.deepcopy(one).state_dict()
    assert list(written) == list(expected_state)
    for key, t in written.items():
        full = t.full_tensor() if isinstance(t, DTensor) else t
        close(key, full.double(), expected_state[key].double())


PROOFS: tuple[Callable[[int], None], ...] = (
    synchronised, separate, empty_batch, one_value_per_process, converted, compiled, shared_weights, fully_sharded,
)  # fmt: skip


def work(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    for proof in PROOFS:
        proof(rank)
        dist.barrier()
        if rank == 0:
            print("proven:", proof.__name__, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    start_processes(work, (sys.argv[1],), WORLD, start_method="fork")  # PyTorch is imported once
