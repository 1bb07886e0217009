"""The operator's halves, launched with a given configuration: the paper's form, and the authors' with BatchNorm."""

from dataclasses import dataclass

import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange, NormSaved, Options, Running
from ulsam_fused.kernels.gpu import (
    backend as launcher,
)
from ulsam_fused.kernels.gpu import (
    norm_backend as norm_launcher,
)
from ulsam_fused.kernels.gpu.launching.geometry import num_sms

from benchmarks.tuning.configs import (
    BACKWARD,
    CHOSEN,
    FORWARD,
    NORM_BACKWARD,
    NORM_FORWARD,
    Candidate,
    Group,
    alternatives,
)
from benchmarks.tuning.configs import chosen as choose
from ulsam_fused.bench.providers import SHARPNESS
from ulsam_fused.bench.timing import sets_needed
from ulsam_fused.bench.workload import Setting

TENSORS = {FORWARD: 2, BACKWARD: 3, NORM_FORWARD: 2, NORM_BACKWARD: 3}  # of x's size, that a call reads or writes
EPS, MOMENTUM = 1e-5, 0.1
Results = dict[str, Tensor]


def candidates(group: Group, device: torch.device) -> dict[str, Candidate]:
    """The chosen configuration, then its alternatives."""
    chosen = choose(group, num_sms(device))
    return {CHOSEN: chosen, **alternatives(group, chosen)}


@dataclass(frozen=True)
class Work:
    """A group's inputs on a device."""

    group: Group
    xs: list[Tensor]
    dys: list[Tensor]
    kept: list[tuple[Tensor, ...]]  # what the forward leaves to the backward
    channels: tuple[Tensor, Tensor, Tensor, Tensor]  # [C]: scale, v, gamma and beta of the first norm
    maps: tuple[Tensor, Tensor]  # [g]: gamma and beta of the second norm
    running: tuple[Running, Running]

    @classmethod
    def make(cls, group: Group, device: torch.device, sets: int | None = None) -> "Work":
        """With so many sets of inputs, or as many as leave nothing in the cache."""
        torch.manual_seed(0)
        setting = Setting(group.case, FORWARD, group.dtype, group.layout, device)
        c, g = group.shape[1], group.num_splits
        xs = [setting.tensor()]
        sets = sets or sets_needed(TENSORS[group.direction] * xs[0].nbytes, device)
        xs += [setting.tensor() for _ in range(sets - 1)]
        backward = group.direction in (BACKWARD, NORM_BACKWARD)
        dys = [setting.tensor() for _ in range(sets if backward else 0)]

        def uniform(length: int, low: float, high: float) -> Tensor:
            return torch.empty(length, device=device).uniform_(low, high).to(xs[0].dtype)

        bound = SHARPNESS * (g / c) ** 0.5
        channels = (uniform(c, -1, 1), uniform(c, -bound, bound), uniform(c, 0.5, 1.5), uniform(c, -1, 1))
        maps = (uniform(g, SHARPNESS / 8, SHARPNESS / 4), uniform(g, -1, 1))
        first, second = (
            Running(torch.zeros_like(t[0]), torch.ones_like(t[0]), None, MOMENTUM) for t in (channels, maps)
        )
        work = cls(group, xs, dys, [], channels, maps, (first, second))
        if backward:
            work.kept.extend(work._forward_of(i) for i in range(sets))
        return work

    def run(self, candidate: Candidate, i: int, attention: bool = False) -> Results:
        """One call with the i-th inputs, as training (of the forward without norms: inference) makes it; `attention`
        asks a forward for A, too."""
        x, (scale, v, gamma1, beta1), (gamma2, beta2) = self.xs[i], self.channels, self.maps
        g, direction = self.group.num_splits, self.group.direction
        if direction == FORWARD:
            options = Options(g, False, False, need_attention=attention, need_lse=False)
            y, a, _, _ = launcher.forward(x, scale, None, v, None, options, config=candidate.launch)
            return {"y": y} if a is None else {"y": y, "A": a}
        if direction == BACKWARD:
            z, lse = self.kept[i]
            dx, dscale, _, dv, _ = launcher.backward(
                self.dys[i], None, x, scale, None, v, None, z, lse, Options(g, False, False), config=candidate.launch
            )
            return {"dx": dx, "dscale": dscale, "dv": dv}
        options = Options(g, True, True, need_attention=attention, eps1=EPS, eps2=EPS)
        if direction == NORM_FORWARD:
            y, a, *_ = norm_launcher.norm_forward(
                x, scale, gamma1, beta1, v, gamma2, beta2, options, Exchange(*self.running),
                config=candidate.launch, first_config=candidate.moments,
            )  # fmt: skip
            return {"y": y} if a is None else {"y": y, "A": a}
        found = norm_launcher.norm_backward(
            self.dys[i], None, x, scale, gamma1, beta1, v, gamma2, beta2, NormSaved(*self.kept[i]), options,
            config=candidate.launch,
        )  # fmt: skip
        # not ddw: but for eps the norm cancels dw, so that it is all rounding
        return {f"d{name}": t for name, t in found._asdict().items() if name != "dw" and t is not None}

    def _forward_of(self, i: int) -> tuple[Tensor, ...]:
        x, (scale, v, gamma1, beta1), (gamma2, beta2) = self.xs[i], self.channels, self.maps
        g = self.group.num_splits
        if self.group.direction == BACKWARD:
            _, _, z, lse = launcher.forward(x, scale, None, v, None, Options(g, False, False))
            assert lse is not None
            return z, lse
        options = Options(g, True, True, eps1=EPS, eps2=EPS)
        _, _, *kept = norm_launcher.norm_forward(x, scale, gamma1, beta1, v, gamma2, beta2, options, Exchange())
        return tuple(kept)
