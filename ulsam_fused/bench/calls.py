"""The calls that `bench` times: a provider in one direction, and the ceiling, which moves the fewest bytes."""

import torch
from torch import Tensor, nn

from .directions import DIRECTIONS
from .timing import Call
from .workload import Workload

Inputs = list[tuple[Tensor, Tensor | None]]  # x, and dy except in inference


def inputs(workload: Workload, sets: int, batch: int | None = None) -> Inputs:
    """So many sets of random numbers; `batch` replaces the workload's own."""
    return [(workload.tensor(batch), workload.tensor(batch) if workload.training else None) for _ in range(sets)]


def call(module: nn.Module, inputs: Inputs, direction: str) -> Call:
    """With gradients of x and all parameters, except in inference."""
    if direction == "forward":

        def forward(i: int) -> object:
            with torch.no_grad():
                return module(inputs[i][0])

        return forward
    parameters = tuple(module.parameters())
    leaves = [(x.detach().requires_grad_(), dy) for x, dy in inputs]
    if direction == "backward":
        outputs = [module(x) for x, _ in leaves]

        def backward(i: int) -> object:
            x, dy = leaves[i]
            return torch.autograd.grad(outputs[i], (x, *parameters), dy, retain_graph=True)

        return backward

    def step(i: int) -> object:
        x, dy = leaves[i]
        return torch.autograd.grad(module(x), (x, *parameters), dy)

    return step


def ceiling(inputs: Inputs, direction: str) -> Call:
    """Copies of x, and sums that read x and dy and write one tensor."""
    out = torch.empty_like(inputs[0][0])
    work = DIRECTIONS[direction]

    def move(i: int) -> object:
        x, dy = inputs[i]
        for _ in range(work.copies):
            out.copy_(x)
        if dy is not None:
            for _ in range(work.adds):
                torch.add(x, dy, out=out)
        return out

    return move
