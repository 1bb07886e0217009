"""Whether a provider computes what it should; no time is shown for one that does not.

y differs from x by A alone, and in 16 bits most of that is rounded away. So y - x is judged where it is visible, that
is at least 4 epsilons of x, likewise dx - dy, and y and dx as a whole; all by relative error against float64. The
budget is twice what the eager module of the same form loses in the same type, plus its epsilon, plus 16 epsilons of
float32, which a gradient's sum may well move by when its order changes. torch.compile of others' code is a baseline,
and takes norms' statistics less exactly than eager PyTorch: half the digits of float32 must do.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modules import ULSAM
from ..state_dict import KEYS

Results = dict[str, Tensor]  # y, and for a training step dx and the parameters' gradients joined


@dataclass(frozen=True)
class Yardstick:
    """The right results of one form, and what eager PyTorch loses."""

    x: Tensor
    dy: Tensor | None  # None: the forward pass alone
    golden: Results
    eager: Results

    @classmethod
    def make(cls, source: nn.Module, x: Tensor, dy: Tensor | None) -> "Yardstick":
        """From the eager module that defines the form."""
        exact = copy.deepcopy(source).double()
        golden = results(exact, x.double(), None if dy is None else dy.double())
        return cls(x, dy, golden, results(source, x, dy))

    def verdict(self, module: nn.Module, compiled: bool = False) -> str | None:
        """What is wrong with the module; None where it computes the same as the source."""
        ours = results(module, self.x, self.dy)
        errors, budgets = self._errors(ours), self._errors(self.eager)
        fine = torch.finfo(torch.float32).eps
        rounding = torch.finfo(self.x.dtype).eps + (fine**0.5 if compiled else 16 * fine)
        for name, error in errors.items():
            loss = budgets[name]
            if loss is None or error is None:
                return f"cannot be judged: {name} is invisible in {self.x.dtype} at this size"
            budget = 2 * loss + rounding
            if not error <= budget:
                return f"wrong: {name} is off by {error:.1e}, allowed {budget:.1e}"
        return None

    def _errors(self, ours: Results) -> dict[str, float | None]:
        errors: dict[str, float | None] = {"y-x": self._visible(ours["y"], self.golden["y"], self.x)}
        if self.dy is not None:
            errors["dx-dy"] = self._visible(ours["dx"], self.golden["dx"], self.dy)
        return errors | {name: _error(ours[name], value) for name, value in self.golden.items()}

    def _visible(self, ours: Tensor, golden: Tensor, base: Tensor) -> float | None:
        """The error of ours - base where the golden difference is visible; None where it is nowhere."""
        difference = golden - base.double()
        mask = difference.abs() > 4 * torch.finfo(base.dtype).eps * base.double().abs()
        if not mask.any():
            return None
        return _error((ours.double() - base.double())[mask], difference[mask])


def results(module: nn.Module, x: Tensor, dy: Tensor | None) -> Results:
    """y alone, or y, dx and all parameters' gradients in one vector."""
    if dy is None:
        with torch.no_grad():
            return {"y": module(x)}
    parameters = list(module.parameters())
    x = x.detach().requires_grad_()
    y = module(x)
    dx, *gradients = torch.autograd.grad(y, (x, *parameters), dy)
    return {"y": y.detach(), "dx": dx, "parameters": _joined(module, gradients)}


def _joined(module: nn.Module, gradients: list[Tensor]) -> Tensor:
    """All parameters' gradients as one vector, those of the authors' form in the order of the authors' parameters."""
    if isinstance(module, ULSAM) and module.dw_norm is not None:
        named = dict(zip((name for name, _ in module.named_parameters()), gradients, strict=True))
        flat = [named[name].unflatten(0, (module.num_splits, -1)) for name in KEYS if name in named]
        gradients = [part[i] for i in range(module.num_splits) for part in flat]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _error(ours: Tensor, golden: Tensor) -> float:
    if ours.shape != golden.shape:
        return math.inf
    return float((ours.double() - golden).norm() / golden.norm())
