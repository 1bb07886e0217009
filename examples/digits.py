"""Handwritten digits and a tiny MobileNet-V2 with ULSAM: the fused layer trains as its reference does. Under a minute.

    pip install scikit-learn
    python examples/digits.py
    torchrun --nproc-per-node 2 examples/digits.py

The digits are the 1797 real ones of 8x8 pixels that scikit-learn carries, the last fifth of them for the test. Proven,
with exit code 1 where it is not so:

- one process: over the first 20 steps from one seed, the losses of the fused layers are the reference's in float32;
- several processes: they are those of one process that does the same, to the same tolerance;
- after training, more than 90 % of the test digits are recognised.

Tolerance. The reference in float64 is the judge. How far float32 may come from it is measured, as training amplifies
rounding: the reference is trained in float32 with the images of every batch in five other orders, which changes nothing
but the order of sums. Allowed is four times the largest distance of those up to that step, plus float32's epsilon: five
are a small sample of what chance does. That is 3e-5 at step 20; layers that only hand x on are off by fifty times that.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ulsam_fused as uf
from ulsam_fused.models.blocks import ConvNormActivation, InvertedResidual

TEST = 360
INSERT = {3: 4, 5: 4}
"""A ULSAM of 4 subspaces after each of these layers, on maps of 8x8 and 4x4."""

ORDERS = 5


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 3, 8, 8] of mean 0 and deviation 1, labels [1797].

    Their values are whole, 0 to 16. Noise of one level is added: where neighbours are equal, the maximum of a window is
    a matter of rounding, and with it the gradient.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.images, dtype=torch.float32)[:, None]
    x += torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean()) / x.std()
    return x.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last), torch.tensor(loaded.target)


def network(backend: str = "auto", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A few of MobileNet-V2's layers, without dropout: its mask would tell one order of a batch from another."""
    torch.manual_seed(0)
    layers = [
        ConvNormActivation(3, 16, activation=nn.ReLU6),
        InvertedResidual(16, 16, 1, 1),
        InvertedResidual(16, 16, 1, 4),
        InvertedResidual(16, 32, 2, 4),
        InvertedResidual(32, 32, 1, 4),
    ]
    head = ConvNormActivation(32, 64, 1, activation=nn.ReLU6)
    classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(64, 10))
    model = uf.models.MobileNet(layers, head, classifier, INSERT, None, "paper")
    for layer in model.attention_layers().values():
        layer.backend = backend
    return model.to(memory_format=torch.channels_last).to(dtype)


def batches(steps: int, size: int, epoch: int = 0) -> list[Tensor]:
    """The numbers of the training images in each step."""
    order = torch.randperm(1797 - TEST, generator=torch.Generator().manual_seed(epoch))
    return list(order.split(size))[:steps]


def sgd(model: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=4e-5)


def losses(model: nn.Module, x: Tensor, labels: Tensor, numbers: list[Tensor], parts: int = 1) -> Tensor:
    """Train, and return the loss of each step [steps].

    parts: what DistributedDataParallel does in so many processes, in one: norms see a part of the batch each,
    gradients are averaged, and running statistics are the first part's.
    """
    model.train()
    optimizer, found = sgd(model, 0.01), []
    for chosen in numbers:
        optimizer.zero_grad()
        total, kept = 0.0, []
        for part in range(parts):
            mine = chosen[part::parts]
            loss = F.cross_entropy(model(x[mine]), labels[mine]) / parts
            loss.backward()
            total += loss.item()
            kept = kept or [buffer.clone() for buffer in model.buffers()]
        for buffer, first in zip(model.buffers(), kept, strict=True):
            buffer.copy_(first)
        optimizer.step()
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def losses_together(model: nn.Module, x: Tensor, labels: Tensor, numbers: list[Tensor]) -> Tensor:
    """As `losses`, by all processes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    wrapped = DistributedDataParallel(model.train())
    optimizer, found = sgd(model, 0.01), []
    for chosen in numbers:
        mine = chosen[rank::world]
        optimizer.zero_grad()
        loss = F.cross_entropy(wrapped(x[mine]), labels[mine])
        loss.backward()
        optimizer.step()
        found.append(loss.detach().double())
    total = torch.stack(found)
    dist.all_reduce(total)
    return total / world


def excess(ours: Tensor, judge: Tensor, others: Sequence[Tensor]) -> float:
    """How far our losses are from the judge's, at the worst step, as a share of what is allowed."""
    spread = torch.stack([(other - judge).abs() for other in others]).amax(0).cummax(0).values
    return float(((ours - judge).abs() / (4 * spread + torch.finfo(torch.float32).eps * judge)).max())


def compare(
    ours: Callable[[list[Tensor]], Tensor], x: Tensor, labels: Tensor, steps: int, batch: int, orders: int, parts: int
) -> tuple[float, Tensor, Tensor]:
    """The excess of `ours`, its losses and the reference's in float64."""
    numbers = batches(steps, batch)
    judge = losses(network("reference", torch.float64), x.double(), labels, numbers, parts=parts)
    others = [
        losses(network("reference"), x, labels, [_reordered(n, order, parts) for n in numbers], parts=parts)
        for order in range(orders)
    ]
    found = ours(numbers)
    return excess(found, judge, others), found, judge


def _reordered(numbers: Tensor, order: int, parts: int) -> Tensor:
    """Every image stays in its part, whose statistics it takes part in."""
    generator = torch.Generator().manual_seed(order)
    moved = numbers.clone()
    for part in range(parts):
        mine = numbers[part::parts]
        moved[part::parts] = mine[torch.randperm(len(mine), generator=generator)]
    return moved


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Percent of the test digits."""
    logits = model.eval()(x[-TEST:])
    return 100 * float((logits.argmax(1) == labels[-TEST:]).double().mean())


def train(model: nn.Module, x: Tensor, labels: Tensor, epochs: int, batch: int, say: Callable[[str], None]) -> float:
    """Train on a cosine, by all processes if there are several; the accuracy on the test digits."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = sgd(model, 0.05)
    steps = (1797 - TEST) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        wrapped.train()
        for chosen in batches(steps, batch, 1 + epoch):
            mine = chosen[rank::world]
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x[mine]), labels[mine]).backward()
            optimizer.step()
            schedule.step()
        found = accuracy(model, x, labels)
        say(f"epoch {epoch + 1}/{epochs}: {found:.2f} % of the test digits")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="of the training for accuracy")
    parser.add_argument("--steps", type=int, default=20, help="that are compared")
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--orders", type=int, default=ORDERS, help="that the tolerance is measured with")
    args = parser.parse_args(argv)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    first = world == 1 or dist.get_rank() == 0

    def say(line: str) -> None:
        if first:
            print(line, flush=True)

    began = time.perf_counter()
    x, labels = digits()
    if world > 1:
        what = f"{world} processes against one"

        def ours(numbers: list[Tensor]) -> Tensor:
            return losses_together(network(), x, labels, numbers)
    else:
        what = "fused against reference"

        def ours(numbers: list[Tensor]) -> Tensor:
            return losses(network(), x, labels, numbers)

    share, found, judge = compare(ours, x, labels, args.steps, args.batch, args.orders, world)
    for step in range(0, args.steps, 5):
        say(f"step {step}: loss {found[step]:.7f}, in float64 {judge[step]:.7f}")
    say(f"{what}, {args.steps} steps: at most {share:.2f} of the tolerance")
    reached = train(network(), x, labels, args.epochs, args.batch, say)
    good = share <= 1 and reached > 90
    say(
        f"{'proven' if good else 'NOT PROVEN'}: {reached:.2f} % of the test digits, {time.perf_counter() - began:.0f} s"
    )
    if world > 1:
        dist.destroy_process_group()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
