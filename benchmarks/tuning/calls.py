"""Launches either direction of either form with a given configuration; the authors' form with batch statistics."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu import norm_backend as norm_launcher
from ulsam_fused.kernels.gpu import norm_backward_backend as norm_backward_launcher
from ulsam_fused.kernels.gpu.launching import norm_plans
from ulsam_fused.kernels.gpu.launching.geometry import num_sms
from ulsam_fused.kernels.gpu.norm_backend import Running

from benchmarks.tuning.configs import (
    BACKWARD,
    CHOSEN,
    FORWARD,
    NORM_BACKWARD,
    NORM_FORWARD,
    Candidate,
    Target,
    alternatives,
)
from benchmarks.tuning.configs import chosen as choose
from ulsam_fused.bench.providers import SHARPNESS
from ulsam_fused.bench.timing import sets_needed
from ulsam_fused.bench.workload import Workload

TENSORS = {FORWARD: 2, BACKWARD: 3, NORM_FORWARD: 2, NORM_BACKWARD: 3}  # of x's size, that a call reads or writes
EPS, MOMENTUM = 1e-5, 0.1
Results = dict[str, Tensor]


def candidates(target: Target, device: torch.device) -> dict[str, Candidate]:
    """The chosen configuration, then its alternatives."""
    chosen = choose(target, num_sms(device))
    return {CHOSEN: chosen, **alternatives(target, chosen)}


class Parameters(NamedTuple):
    """The paper's form has the weights alone, dw and pw."""

    dw: Tensor  # [C]
    gamma1: Tensor  # [C]
    beta1: Tensor  # [C]
    pw: Tensor  # [C]
    gamma2: Tensor  # [g]
    beta2: Tensor  # [g]
    running1: Running
    running2: Running


class Saved(NamedTuple):
    """What a forward leaves to the backward."""

    z: Tensor
    lse: Tensor


class NormSaved(NamedTuple):
    """The same with batch statistics."""

    z: Tensor
    lse: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Work:
    """The inputs of a target on a device."""

    target: Target
    parameters: Parameters
    xs: list[Tensor]
    dys: list[Tensor]  # none for a forward

    @classmethod
    def make(cls, target: Target, device: torch.device, sets: int | None = None) -> "Work":
        """With so many sets of inputs, or as many as leave nothing in the cache."""
        torch.manual_seed(0)
        workload = Workload(target.case, FORWARD, target.dtype, target.layout, device)
        c, g = target.shape[1], target.num_splits
        xs = [workload.tensor()]
        sets = sets or sets_needed(TENSORS[target.direction] * xs[0].nbytes, device)
        xs += [workload.tensor() for _ in range(sets - 1)]
        backward = target.direction in (BACKWARD, NORM_BACKWARD)
        dys = [workload.tensor() for _ in range(sets if backward else 0)]

        def uniform(length: int, low: float, high: float) -> Tensor:
            return torch.empty(length, device=device).uniform_(low, high).to(xs[0].dtype)

        def running(length: int) -> Running:
            zeros = torch.zeros(length, device=device, dtype=xs[0].dtype)
            return zeros, torch.ones_like(zeros), None, MOMENTUM

        bound = SHARPNESS * (g / c) ** 0.5
        dw, pw = uniform(c, -1, 1), uniform(c, -bound, bound)
        gamma1, beta1 = uniform(c, 0.5, 1.5), uniform(c, -1, 1)
        gamma2, beta2 = uniform(g, SHARPNESS / 8, SHARPNESS / 4), uniform(g, -1, 1)
        parameters = Parameters(dw, gamma1, beta1, pw, gamma2, beta2, running(c), running(g))
        return cls(target, parameters, xs, dys)

    @functools.cached_property
    def saved(self) -> list[Saved]:
        """Of a forward in the paper's form, for each set of inputs."""
        p, found = self.parameters, []
        for x in self.xs:
            _, _, z, lse = launcher.forward(
                x, p.dw, None, p.pw, None, self.target.num_splits, False, False, None, False
            )
            assert lse is not None
            found.append(Saved(z, lse))
        return found

    @functools.cached_property
    def norm_saved(self) -> list[NormSaved]:
        """Of a forward in the authors' form, for each set of inputs."""
        p, g, found = self.parameters, self.target.num_splits, []
        for x in self.xs:
            _, _, z, lse, first, second = norm_launcher.norm_forward(
                x, p.dw, p.gamma1, p.beta1, p.pw, p.gamma2, p.beta2, g, EPS, EPS, True, True, None, False
            )
            found.append(NormSaved(z, lse, first, second))
        return found

    def run(self, candidate: Candidate, i: int, attention: bool = False) -> Results:
        """One call with the i-th inputs, as training makes it, and inference the forward of the paper's form.

        `attention` asks a forward for A, too.
        """
        if self.target.direction == FORWARD:
            return self._forward(candidate, i, attention)
        if self.target.direction == BACKWARD:
            return self._backward(candidate, i)
        if self.target.direction == NORM_FORWARD:
            return self._norm_forward(candidate, i, attention)
        return self._norm_backward(candidate, i)

    def _forward(self, candidate: Candidate, i: int, attention: bool) -> Results:
        p = self.parameters
        y, a, _, _ = launcher.forward(
            self.xs[i], p.dw, None, p.pw, None, self.target.num_splits, False, False, None, attention, False,
            config=candidate.launch,
        )  # fmt: skip
        return {"y": y} if a is None else {"y": y, "A": a}

    def _backward(self, candidate: Candidate, i: int) -> Results:
        p, saved = self.parameters, self.saved[i]
        dx, ddw, _, dpw, _ = launcher.backward(
            self.dys[i], None, self.xs[i], p.dw, None, p.pw, None, saved.z, saved.lse, self.target.num_splits, False,
            False, config=candidate.launch,
        )  # fmt: skip
        return {"dx": dx, "ddw": ddw, "dpw": dpw}

    def _norm_forward(self, candidate: Candidate, i: int, attention: bool) -> Results:
        p = self.parameters
        y, a, *_ = norm_launcher.norm_forward(
            self.xs[i], p.dw, p.gamma1, p.beta1, p.pw, p.gamma2, p.beta2, self.target.num_splits, EPS, EPS, True, True,
            None, attention, p.running1, p.running2, config=candidate.launch, first_config=candidate.moments,
        )  # fmt: skip
        return {"y": y} if a is None else {"y": y, "A": a}

    def _norm_backward(self, candidate: Candidate, i: int) -> Results:
        p, saved = self.parameters, self.norm_saved[i]
        with _flat_programs(candidate.flat_programs):
            dx, _, dgamma1, dbeta1, dpw, dgamma2, dbeta2 = norm_backward_launcher.norm_backward(
                self.dys[i], None, self.xs[i], p.dw, p.gamma1, p.beta1, p.pw, p.gamma2, p.beta2, saved.z, saved.lse,
                saved.first, saved.second, self.target.num_splits, EPS, True, True, config=candidate.launch,
            )  # fmt: skip
        # ddw is left out: the norm cancels dw except for eps, so ddw is mostly rounding
        found = {
            "dx": dx, "dgamma1": dgamma1, "dbeta1": dbeta1, "dpw": dpw, "dgamma2": dgamma2, "dbeta2": dbeta2
        }  # fmt: skip
        return {name: t for name, t in found.items() if t is not None}


@contextlib.contextmanager
def _flat_programs(times: float) -> Iterator[None]:
    """Plans made inside have so many times the programs of flat passes."""
    if times == 1:
        yield
        return
    original = norm_plans.FLAT_PROGRAMS_PER_SM
    norm_plans.FLAT_PROGRAMS_PER_SM = max(1, int(original * times))
    norm_plans.norm_backward_plan.cache_clear()
    try:
        yield
    finally:
        norm_plans.FLAT_PROGRAMS_PER_SM = original
        norm_plans.norm_backward_plan.cache_clear()
