"""What the tests of both backends' norms share: the folded forward, and another process with the same images."""

import dataclasses
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from ulsam_fused.kernels.contract import FixedNorm

from tests.helpers.norm_forward_golden import Buffers
from tests.helpers.norm_golden import NormCase, run_norm_reference


def run_folded(
    module: ModuleType,
    case: NormCase,
    buffers: Buffers,
    *,
    dw: bool = True,
    norm1: bool = True,
    out_dtype: torch.dtype | None = None,
    need_attention: bool = True,
    **launch: Any,
) -> dict[str, Tensor | None]:
    """y and A of a backend module's folded forward. Without dw it pools x; without norm1 beta1 is the only shift."""
    first = FixedNorm(case.gamma1, case.beta1, buffers.mean1, buffers.var1, case.eps1)
    second = FixedNorm(case.gamma2, case.beta2, buffers.mean2, buffers.var2, case.eps2)
    bias = None if not dw else buffers.bias1 if norm1 else case.beta1
    y, A = module.folded_forward(
        case.x, case.dw if dw else None, bias, first if norm1 else None, case.pw, buffers.bias2, second,
        case.options(out_dtype=out_dtype, need_attention=need_attention), **launch,
    )  # fmt: skip
    return {"y": y, "A": A}


class Twins:
    """Two processes with the same images."""

    def __init__(self) -> None:
        self.calls = 0
        self.gathered: list[tuple[int, ...]] = []

    def sum(self, t: Tensor) -> Tensor:
        self.calls += 1
        return 2 * t

    def gather(self, moments: Tensor) -> Tensor:
        self.calls += 1
        self.gathered.append(tuple(moments.shape))
        beyond = torch.full_like(moments, torch.nan)  # what a kernel that counts wrong would read
        return torch.cat((moments, moments, beyond))[: 2 * len(moments)]


def gradients_of_twins(case: NormCase) -> dict[str, Tensor | None]:
    """Of the images stacked twice: of dx one half, of a parameter half of the sum."""
    given = {name: getattr(case, name) for name in ("x", "dy", "d_attention")}
    stacked = {name: torch.cat((t, t)) for name, t in given.items() if t is not None}
    whole = run_norm_reference(dataclasses.replace(case, **stacked), torch.float64)
    images = len(case.x)
    return {name: t[:images] if name == "dx" else None if t is None else t / 2 for name, t in whole.items()}
