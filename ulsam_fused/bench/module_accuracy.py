"""Whether a module of `bench` computes what it should; one that does not gets no time.

y differs from x by A alone, and 16 bits round most of that away. So y - x is judged where it is visible, at least 4
epsilons of x; likewise dx - dy; and y, dx and the gradients of the parameters as a whole. Eager is the eager module of
the same form. The rounding in the tolerance is the epsilon of the type, plus 16 epsilons of float32 for sums in another
order. torch.compile of others' code is a baseline that takes the norms' statistics less exactly than eager PyTorch:
for it, half the digits of float32 are enough.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modules import ULSAM
from ..state_dict import KEYS
from .accuracy import Results, complaint, measure


@dataclass(frozen=True)
class Expected:
    """The golden results of one form, and those of eager PyTorch."""

    x: Tensor
    dy: Tensor | None  # None: the forward pass alone
    visible: dict[str, Tensor]  # where y - x and dx - dy can be seen in x's type
    golden: Results
    eager: Results

    @classmethod
    def of(cls, source: nn.Module, x: Tensor, dy: Tensor | None) -> "Expected":
        """From the eager module that defines the form."""
        exact = copy.deepcopy(source).double()
        golden = results(exact, x.double(), None if dy is None else dy.double())
        visible = {"y-x": _visible(golden["y"], x)}
        if dy is not None:
            visible["dx-dy"] = _visible(golden["dx"], dy)
        golden, eager = (_with_differences(found, x, dy, visible) for found in (golden, results(source, x, dy)))
        return cls(x, dy, visible, golden, eager)

    def problem_with(self, module: nn.Module, compiled: bool = False) -> str | None:
        """What is wrong with the module; None where it computes the same as the source."""
        for name, mask in self.visible.items():
            if not mask.any():
                return f"cannot be judged: {name} is invisible in {self.x.dtype} at this size"
        ours = _with_differences(results(module, self.x, self.dy), self.x, self.dy, self.visible)
        fine = torch.finfo(torch.float32).eps
        rounding = torch.finfo(self.x.dtype).eps + (fine**0.5 if compiled else 16 * fine)
        return complaint(measure(ours, self.eager, self.golden, dict.fromkeys(self.golden, rounding)))


def results(module: nn.Module, x: Tensor, dy: Tensor | None) -> Results:
    """y alone; with dy also dx, and the gradients of all parameters as one vector."""
    if dy is None:
        with torch.no_grad():
            return {"y": module(x)}
    parameters = list(module.parameters())
    x = x.detach().requires_grad_()
    y = module(x)
    dx, *gradients = torch.autograd.grad(y, (x, *parameters), dy)
    return {"y": y.detach(), "dx": dx, "parameters": _joined(module, gradients)}


def _visible(golden: Tensor, base: Tensor) -> Tensor:
    """Where golden - base is large enough to be seen beside base in base's type."""
    wide = base.double()
    return (golden - wide).abs() > 4 * torch.finfo(base.dtype).eps * wide.abs()


def _with_differences(found: Results, x: Tensor, dy: Tensor | None, visible: dict[str, Tensor]) -> Results:
    """With y - x and dx - dy in front, where they are visible."""
    differences = {"y-x": (found["y"].double() - x.double())[visible["y-x"]]}
    if dy is not None:
        differences["dx-dy"] = (found["dx"].double() - dy.double())[visible["dx-dy"]]
    return differences | found


def _joined(module: nn.Module, gradients: list[Tensor]) -> Tensor:
    """All parameters' gradients as one vector, those of the authors' form in the order of the authors' parameters."""
    if isinstance(module, ULSAM) and "dw_norm" in module._modules:
        named = dict(zip((name for name, _ in module.named_parameters()), gradients, strict=True))
        flat = [named[name].unflatten(0, (module.num_splits, -1)) for name in KEYS if name in named]
        gradients = [part[i] for i in range(module.num_splits) for part in flat]
    return torch.cat([gradient.flatten() for gradient in gradients])
