"""Launches either direction of either form with a given configuration; the authors' form with batch statistics."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange, Forward, Inputs, NormInputs, NormSaved, Options, Running
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu import norm_backend as norm_launcher
from ulsam_fused.kernels.gpu.launching.geometry import num_sms

from benchmarks.tuning import configs
from benchmarks.tuning.configs import BACKWARD, FORWARD, NORM_BACKWARD, NORM_FORWARD, Candidate, Target, alternatives
from ulsam_fused.bench.accuracy import Results
from ulsam_fused.bench.providers import SHARPNESS
from ulsam_fused.bench.timing import sets_needed
from ulsam_fused.bench.workload import Workload

TENSORS = {FORWARD: 2, BACKWARD: 3, NORM_FORWARD: 2, NORM_BACKWARD: 3}  # of x's size, that a call reads or writes
EPS, MOMENTUM = 1e-5, 0.1


def candidates(target: Target, device: torch.device) -> dict[str, Candidate]:
    """The chosen configuration, then its alternatives."""
    chosen = configs.chosen(target, num_sms(device))
    return {configs.CHOSEN: chosen, **alternatives(target, chosen)}


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

    def paper(self, x: Tensor) -> Inputs:
        return Inputs(x, self.dw, None, self.pw, None)

    def with_norms(self, x: Tensor) -> NormInputs:
        return NormInputs(x, self.dw, self.gamma1, self.beta1, self.pw, self.gamma2, self.beta2)


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
            return Running(zeros, torch.ones_like(zeros), None, MOMENTUM)

        bound = SHARPNESS * (g / c) ** 0.5
        dw, pw = uniform(c, -1, 1), uniform(c, -bound, bound)
        gamma1, beta1 = uniform(c, 0.5, 1.5), uniform(c, -1, 1)
        gamma2, beta2 = uniform(g, SHARPNESS / 8, SHARPNESS / 4), uniform(g, -1, 1)
        parameters = Parameters(dw, gamma1, beta1, pw, gamma2, beta2, running(c), running(g))
        return cls(target, parameters, xs, dys)

    @functools.cached_property
    def saved(self) -> list[Forward]:
        """Of a forward in the paper's form, for each set of inputs."""
        options = Options(self.target.num_splits, False, False)
        return [launcher.forward(self.parameters.paper(x), options) for x in self.xs]

    @functools.cached_property
    def norm_saved(self) -> list[NormSaved]:
        """Of a forward in the authors' form, for each set of inputs."""
        found = []
        for x in self.xs:
            inputs = self.parameters.with_norms(x)
            _, _, z, lse, first, second = norm_launcher.norm_forward(inputs, self._norm_options(False), Exchange())
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
        options = Options(self.target.num_splits, False, False, need_attention=attention, need_lse=False)
        y, a, _, _ = launcher.forward(self.parameters.paper(self.xs[i]), options, config=candidate.launch)
        return {"y": y} if a is None else {"y": y, "A": a}

    def _backward(self, candidate: Candidate, i: int) -> Results:
        saved, options = self.saved[i], Options(self.target.num_splits, False, False)
        assert saved.lse is not None
        dx, ddw, _, dpw, _ = launcher.backward(
            self.dys[i], None, self.parameters.paper(self.xs[i]), saved.z, saved.lse, options, config=candidate.launch
        )
        return {"dx": dx, "ddw": ddw, "dpw": dpw}

    def _norm_forward(self, candidate: Candidate, i: int, attention: bool) -> Results:
        p = self.parameters
        y, a, *_ = norm_launcher.norm_forward(
            p.with_norms(self.xs[i]), self._norm_options(attention), Exchange(p.running1, p.running2),
            config=candidate.launch, first_config=candidate.moments,
        )  # fmt: skip
        return {"y": y} if a is None else {"y": y, "A": a}

    def _norm_backward(self, candidate: Candidate, i: int) -> Results:
        found = norm_launcher.norm_backward(
            self.dys[i], None, self.parameters.with_norms(self.xs[i]), self.norm_saved[i], self._norm_options(False),
            config=candidate.launch,
        )  # fmt: skip
        # ddw is left out: the norm cancels dw except for eps, so ddw is mostly rounding
        return {f"d{name}": t for name, t in found._asdict().items() if name != "dw" and t is not None}

    def _norm_options(self, attention: bool) -> Options:
        return Options(self.target.num_splits, True, True, need_attention=attention, eps1=EPS, eps2=EPS)
