"""A layer with norms of any kind in eager PyTorch, and the sizes of what it adds up."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.calls import Call
from tests.fuzz.layers import RUNNING
from tests.fuzz.tensors import Given, Outputs
from tests.helpers.golden import map_terms
from ulsam_fused import reference


class Step(NamedTuple):
    """What a norm did to a subspace in float64: doubling * (normed * weight + bias)."""

    mean: Tensor
    factor: Tensor
    normed: Tensor  # (t - mean) * factor
    gave: Tensor
    doubling: int
    over: tuple[int, ...]  # the dimensions whose statistics mean and factor are; empty where they are fixed


@dataclasses.dataclass
class Seen:
    """What a norm has seen in float64."""

    constant: bool = False  # almost, so that it divides rounding noise by the root of eps
    steps: dict[int, Step] = dataclasses.field(default_factory=dict)  # by the subspace's first channel


@dataclasses.dataclass
class Sizes:
    """A norm of absolute values. They are of what is added up, so that nothing cancels, or of the sums (`summed`).

    Its gradients, too, add up absolute values.
    """

    seen: Seen
    weight: Tensor | None
    bias: Tensor | None
    summed: bool
    takes: list[Tensor] = dataclasses.field(default_factory=list)  # the largest of each channel
    gives: list[Tensor] = dataclasses.field(default_factory=list)

    def apply(self, t: Tensor, channels: slice) -> Tensor:
        weight = 1.0 if self.weight is None else self.weight[channels].view(1, -1, 1, 1)
        bias = 0.0 if self.bias is None else self.bias[channels].view(1, -1, 1, 1)
        step = self.seen.steps[channels.start]
        added = t + step.mean.abs()
        self.takes.append(added.detach().amax((0, 2, 3)))
        normed = _valued(added * step.factor, step.normed.abs()) if self.summed else added * step.factor
        if step.over:  # the gradients of mean and factor
            size = step.normed.abs()
            taken = t.mean(step.over, keepdim=True) + size * (size * t).mean(step.over, keepdim=True)
            normed = _valued(normed + step.factor * taken, normed.detach())
        y = step.doubling * (normed * weight + bias)
        self.gives.append(_valued(y, step.gave.abs()) if self.summed else y)
        return self.gives[-1]


def _valued(t: Tensor, value: Tensor) -> Tensor:
    """This value, which passes its gradient to t."""
    return t - t.detach() + value


def terms_of(call: Call, given: Given, golden: Outputs, dw_norm: Seen, pw_norm: Seen) -> dict[str, float]:
    """What is added up to give each result, in absolute values, as in `tests.helpers.golden`: the result may cancel.

    A gradient is made of products. Where one factor is counted before it cancels, the other is counted after.
    """
    x, dy = given.x.double(), given.dy.double()
    leaves = {name: t.double().abs().requires_grad_() for name, t in {"x": given.x, **given.parameters}.items()}

    def sizes(summed: bool) -> tuple[Sizes, Sizes]:
        norms = (
            Sizes(dw_norm, leaves.get("gamma1"), leaves.get("beta1"), summed),
            Sizes(pw_norm, leaves.get("gamma2"), leaves.get("beta2"), summed),
        )
        reference.batch_norm_form(
            leaves["x"], leaves["scale"], leaves.get("shift"), norms[0], leaves["v"], leaves.get("b"), norms[1],
            call.num_splits, relu_u=False, relu_z=False, pool_input=call.legacy,
        )  # fmt: skip
        return norms

    def through(norm: Sizes, dl: Tensor) -> list[Tensor]:
        return torch.autograd.grad(torch.cat(norm.gives, dim=1), list(leaves.values()), dl, materialize_grads=True)

    z = torch.cat([step.gave for step in pw_norm.steps.values()], dim=1)
    lse = (z.relu() if call.relu else z).flatten(2).logsumexp(-1).abs()[:, :, None, None]
    (dw_added, added), (_, summed) = sizes(False), sizes(True)
    A, dl, dl_added = map_terms(golden["A"], torch.cat(added.gives, dim=1).detach(), lse, dy * x, torch.zeros_like(z))
    gradients = zip(through(added, dl.abs()), through(summed, dl_added), strict=True)
    terms = {name: a + b for name, (a, b) in zip(leaves, gradients, strict=True)}
    A_wide = A.repeat_interleave(call.group, dim=1)
    terms |= {"A": A, "y - x": A_wide * x, "dx": A_wide * dy.abs() + terms["x"]}
    terms |= {name: torch.cat((added if name.startswith("pw") else dw_added).takes) for name in RUNNING}
    return {name: float(t.norm()) for name, t in terms.items()}


class Norm(NamedTuple):
    """What `reference.batch_norm_form` takes, of any kind."""

    kind: str  # of UNDERSTOOD or CALLED
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    training: bool
    momentum: float | None
    eps: float
    seen: Seen | None

    def apply(self, t: Tensor, channels: slice) -> Tensor:
        weight, bias, mean, var = (p if p is None else p[channels] for p in self[1:5])
        batch = self.kind in ("instance", "group") or (self.training and self.kind not in ("frozen", "identity"))
        momentum = self.momentum
        doubling = 2 if self.kind in ("hook", "forward") else 1
        if self.kind == "identity":
            y = t
        elif self.kind == "group":
            y = F.group_norm(t, 1, weight, bias, self.eps)
        elif self.kind in ("instance", "tracking"):
            y = F.instance_norm(t, mean, var, weight, bias, batch, momentum or 0.0, self.eps)
        else:
            momentum = 1.0 if momentum is None else momentum  # of the first batch
            y = F.batch_norm(t, mean, var, weight, bias, batch, momentum, self.eps)
            y = doubling * y
        if self.seen is not None:
            over = {"instance": (2, 3), "tracking": (2, 3), "group": (1, 2, 3)}.get(self.kind, (0, 2, 3))
            spread, centre = torch.var_mean(t.detach(), over, correction=0, keepdim=True)
            self.seen.constant |= batch and bool((spread < 1e-9 * (1 + centre**2)).any())
            if self.kind == "identity":
                spread, centre = torch.ones_like(spread) - self.eps, torch.zeros_like(centre)
            elif not batch:
                spread, centre = (statistic.view(1, -1, 1, 1) for statistic in (var, mean))
            factor = (spread + self.eps).rsqrt()
            normed = (t.detach() - centre) * factor
            self.seen.steps[channels.start] = Step(centre, factor, normed, y.detach(), doubling, over if batch else ())
        return y


def run_eager(
    call: Call, given: Given, running: dict[str, Tensor], dtype: torch.dtype, seen: dict[str, Seen] | None = None
) -> Outputs:
    """The same by the reference in one type; what its norms see is added to `seen`."""
    leaves = {"x": given.x.detach().to(dtype)}
    # contiguous: PyTorch's batch_norm of a channels_last input has the wrong gradient where its weight has gaps
    leaves |= {name: p.detach().to(dtype).contiguous() for name, p in given.parameters.items()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    running = {name: t.to(dtype, copy=True) for name, t in running.items()}

    def norm(kind: str, gamma: str, beta: str, name: str, training: bool) -> Any:
        mean, var = (running.get(f"{name}.running_{statistic}") for statistic in ("mean", "var"))
        watched = None if seen is None else seen[name]
        return Norm(kind, leaves.get(gamma), leaves.get(beta), mean, var, training, call.momentum, call.eps, watched)

    y, A = reference.batch_norm_form(
        leaves["x"], leaves["scale"], leaves.get("shift"),
        norm(call.dw_norm, "gamma1", "beta1", "dw_norm", call.dw_training), leaves["v"], leaves.get("b"),
        norm(call.pw_norm, "gamma2", "beta2", "pw_norm", call.pw_training), call.num_splits, relu_u=call.relu,
        relu_z=call.relu, pool_input=call.legacy,
    )  # fmt: skip
    found: Outputs = {"y - x": y.detach().double() - leaves["x"].detach().double(), "A": A.detach()}
    gradients = torch.autograd.grad(y, list(leaves.values()), given.dy.to(dtype), allow_unused=True)
    found |= {"dx" if name == "x" else name: t for name, t in zip(leaves, gradients, strict=True)}
    return found | running


def near_a_kink(call: Call, given: Given, running: dict[str, Tensor]) -> bool:
    """As `_near_a_kink`, of a layer: moving x by a few roundings moves a gradient by more than it should."""
    eps = torch.finfo(torch.promote_types(given.x.dtype, torch.float32)).eps
    dx = []
    for step in (-64, -16, -4, 0, 4, 16, 64):
        moved = dataclasses.replace(given, x=given.x.double() * (1 + step * eps))
        dx.append(run_eager(call, moved, running, torch.float64)["dx"])
    apart = [float((b - a).norm()) for a, b in itertools.pairwise(dx)]
    return max(apart) > 1e4 * eps * float(dx[3].norm())
