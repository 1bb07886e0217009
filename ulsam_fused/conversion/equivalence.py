"""Whether two modules compute the same. They are run, because layers alone do not tell in which order they are used.

A float64 copy of the original gets random weights, chosen so that its maps are peaked and the order of its layers
matters. The copy and its replacement take a training step and then run in eval mode. Compared are y - x (y itself is
nearly x), the gradient of x beyond the direct one, dx - dy, and the buffers after the step.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

TOLERANCE = 1e-7
"""Relative error. A right replacement is off by about 1e-13, a wrong one by nearly 1."""

_SHAPE = (2, 5, 7)  # N, H, W


class Comparison:
    """Runs a copy of the original with random weights on x [2, channels, 5, 7]; the original itself is not touched.

    Raises:
        Exception: whatever the original raises when it is copied or run.
    """

    def __init__(self, original: nn.Module, channels: int) -> None:
        generator = torch.Generator().manual_seed(0)
        n, h, w = _SHAPE
        self._x, self._dy = torch.randn(
            2, n, channels, h, w, generator=generator, dtype=torch.float64, device="cpu"
        ).unbind()
        self._before = _float64_copy(original).train()
        with torch.random.fork_rng(devices=[]):
            _randomise(self._before, self._x, generator)
            self._after = copy.deepcopy(self._before)
            self._results = self._run(self._after)

    def error(self, replace: Callable[[nn.Module], nn.Module]) -> float:
        """The largest relative error of the replacement, compared with the original; infinite for NaN.

        Args:
            replace: builds the replacement from a copy of the original, whose layers it may use. The replacement has an
                attribute `backend`.
        """
        replacement = replace(copy.deepcopy(self._before))
        setattr(replacement, "backend", "torch")  # noqa: B010 - torch.nn.Module's attributes have no other type
        pairs = list(zip(self._run(replacement), self._results, strict=True))
        expected = dict(replace(self._after).named_buffers())
        pairs += [(t, expected[name]) for name, t in replacement.named_buffers()]
        return max(_relative(ours, theirs) for ours, theirs in pairs)

    def _run(self, module: nn.Module) -> list[Tensor]:
        """y - x and dx - dy of a training step, then y - x in eval mode."""
        results = []
        for training in (True, False):
            module.train(training)
            x = self._x.clone().requires_grad_()
            with torch.enable_grad():
                y = module(x * 1)  # not the leaf itself: some code writes into its input
                if not isinstance(y, Tensor) or y.shape != x.shape:
                    raise ValueError("the result is no tensor of the shape of x")
                results.append(y.detach() - self._x)
                if training:
                    (dx,) = torch.autograd.grad(y, x, self._dy)
                    results.append(dx - self._dy)
        return results


def _float64_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU. A SyncBatchNorm becomes a BatchNorm2d, which does the same in one process."""
    memo: dict[int, object] = {}
    for layer in module.modules():
        if isinstance(layer, nn.SyncBatchNorm):
            track = layer.running_mean is not None
            norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, True, track, device="cpu")
            norm.track_running_stats = layer.track_running_stats
            memo[id(layer)] = norm
    return copy.deepcopy(module, memo).to("cpu", torch.float64).requires_grad_()


def _randomise(module: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Draw random weights, and running statistics near those of x, so that no ReLU is always 0."""

    def normal(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=t.dtype, device="cpu")

    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(normal(parameter))
        for norm in norms:
            if norm.num_features == 1:
                norm.weight.copy_(normal(norm.weight).abs() + 1.5)
                norm.bias.fill_(0.5)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        module(x.clone())
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.add_(norm.running_var.sqrt() * normal(norm.running_mean), alpha=0.2)
                norm.running_var.mul_(normal(norm.running_var).mul(0.2).exp())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative error of ours; infinite for NaN and for another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = (ours.double() - theirs.double()).norm().item()
    relative = error / max(theirs.double().norm().item(), 1e-30) if error else 0.0
    return relative if relative == relative else float("inf")
