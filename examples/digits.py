"""Train a tiny MobileNet-V2 with ULSAM on handwritten digits, and check that it trains as its reference does.

It takes less than a minute:

    pip install scikit-learn
    python examples/digits.py
    torchrun --nproc-per-node 2 examples/digits.py

The data are the 1797 digits of 8x8 pixels that scikit-learn brings; the last fifth is for the test. The exit code is 1
if one of these fails:

- In one process, the fused layers have the reference's loss in each of the first 20 steps from the same seed.
- Several processes have the losses of one process that does the same work.
- After training, more than 90 % of the test digits are recognised.

Tolerance. Losses are compared with those of the reference in float64. Training amplifies rounding, so we measure how
far float32 may be off: the reference is trained in float32 with the images of every batch in five other orders, which
only changes the order of sums. Allowed is four times the largest deviation so far (five orders are a small sample),
plus float32's epsilon. That is 3e-5 at step 20. Layers that only return x are off by fifty times as much.
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
from ulsam_fused.models.blocks import Block, ConvNormActivation, InvertedResidual

TEST = 360
INSERT = {3: 4, 5: 4}
"""A ULSAM of 4 subspaces after each of these layers, on maps of 8x8 and 4x4."""

ORDERS = 5


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 3, 8, 8] of mean 0 and deviation 1, labels [1797].

    Pixel values are whole numbers from 0 to 16. Noise of up to 1 is added, because among equal neighbours rounding
    would decide which one is the maximum of a window and gets the gradient.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.images, dtype=torch.float32)[:, None]
    x += torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean()) / x.std()
    return x.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last), torch.tensor(loaded.target)


def network(backend: str = "auto", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A few layers of MobileNet-V2, without dropout, which would depend on the order of a batch."""
    torch.manual_seed(0)
    layers: list[ConvNormActivation | Block] = [
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
        assert isinstance(layer, uf.ULSAM)
        layer.backend = backend
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(dtype)


def batches(steps: int, size: int, epoch: int = 0) -> list[Tensor]:
    """The numbers of the training images in each step."""
    order = torch.randperm(1797 - TEST, generator=torch.Generator().manual_seed(epoch))
    return list(order.split(size))[:steps]


def sgd(model: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=4e-5)


def losses(model: nn.Module, x: Tensor, labels: Tensor, numbers: list[Tensor], parts: int = 1) -> Tensor:
    """Train, and return the loss of each step, float64 [steps].

    parts: do what so many processes do under DistributedDataParallel. Norms see one part of the batch each, gradients
    are averaged, and running statistics are those of the first part.
    """
    model.train()
    optimizer, found = sgd(model, 0.01), []
    for chosen in numbers:
        optimizer.zero_grad()
        total = 0.0
        kept: list[Tensor] = []
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
    """`losses`, by all processes together."""
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


def excess(ours: Tensor, exact: Tensor, others: Sequence[Tensor]) -> float:
    """How far our losses are from the exact ones, at the worst step, as a share of what is allowed."""
    spread = torch.stack([(other - exact).abs() for other in others]).amax(0).cummax(0).values
    return float(((ours - exact).abs() / (4 * spread + torch.finfo(torch.float32).eps * exact)).max())


def compare(
    ours: Callable[[list[Tensor]], Tensor], x: Tensor, labels: Tensor, steps: int, batch: int, orders: int, parts: int
) -> tuple[float, Tensor, Tensor]:
    """The excess of `ours`, its losses and the reference's in float64."""
    numbers = batches(steps, batch)
    exact = losses(network("reference", torch.float64), x.double(), labels, numbers, parts=parts)
    others = [
        losses(network("reference"), x, labels, [_reordered(n, order, parts) for n in numbers], parts=parts)
        for order in range(orders)
    ]
    found = ours(numbers)
    return excess(found, exact, others), found, exact


def _reordered(numbers: Tensor, order: int, parts: int) -> Tensor:
    """Another order inside each part; every image stays in its part, because norms see a part."""
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
    """Train with a cosine schedule, by all processes; returns the accuracy in percent of the test digits."""
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
    parser.add_argument("--epochs", type=int, default=12, help="of the training for accuracy (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="that are compared (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=64, help="images in one step of all processes (default: %(default)s)"
    )
    parser.add_argument("--orders", type=int, default=ORDERS, help="that measure the tolerance (default: %(default)s)")
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

    share, found, exact = compare(ours, x, labels, args.steps, args.batch, args.orders, world)
    for step in range(0, args.steps, 5):
        say(f"step {step}: loss {found[step]:.7f}, in float64 {exact[step]:.7f}")
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
