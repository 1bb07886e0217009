"""Every launch configuration that ships, at the map and the channels of a published size that takes it.

A configuration is chosen for the published batch on a GPU of 132 multiprocessors, and executed on one image. Forms
share configurations, so they take turns: the paper's, with biases and ReLUs, the authors' folded, the authors' on
statistics of the batch.
"""

import dataclasses
import itertools
from typing import NamedTuple

import pytest
import torch
from ulsam_fused.kernels.gpu import backend, norm_backend
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig
from ulsam_fused.kernels.gpu.launching.geometry import compared_size

from benchmarks.sizes import CASES, numbers
from tests.helpers.golden import check, make_case, run_backward, run_forward
from tests.helpers.norm_forward_golden import check_norm_forward, make_buffers, run_norm_forward
from tests.helpers.norm_golden import check_norm, make_norm_case, run_norm_backward
from tests.kernels.norms import run_folded

SMS = 132
FORMS = ("paper", "general", "folded", "norm")


class Call(NamedTuple):
    case: str
    form: str
    dtype: torch.dtype
    channels_last: bool

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "nchw"
        return f"{self.case} {self.form} {str(self.dtype)[6:]} {layout}"

    @property
    def forward_config(self) -> LaunchConfig:
        choose = configs.norm_forward_config if self.form == "norm" else configs.forward_config
        return choose(*self._given())

    @property
    def backward_config(self) -> LaunchConfig:
        return configs.backward_config(*self._given(), compared_size(self.dtype))

    def _given(self) -> tuple[tuple[int, int, int, int], int, int, bool, int]:
        n, c, h, w, g = numbers(self.case)
        return (n, c, h, w), g, self.dtype.itemsize, self.channels_last, SMS

    def configurations(self) -> set[object]:
        """What this call executes: tiles, in either regime."""
        if self.form == "folded":
            return {(self.channels_last, self.forward_config)}
        return {(self.channels_last, self.forward_config), (self.channels_last, self.backward_config)}


def calls() -> list[Call]:
    every = [
        Call(case, form, dtype, channels_last)
        for case, dtype, channels_last, form in itertools.product(
            CASES, (torch.float16, torch.float32, torch.bfloat16), (False, True), FORMS
        )
    ]
    wanted = set().union(*(call.configurations() for call in every))
    chosen: list[Call] = []
    turn = itertools.cycle(FORMS)
    while wanted:
        form = next(turn)
        best = max(every, key=lambda call: (len(call.configurations() & wanted), call.form == form))
        chosen.append(best)
        wanted -= best.configurations()
    return chosen


@pytest.mark.parametrize("call", calls(), ids=str)
def test_shipped(call: Call) -> None:
    _, c, h, w, g = numbers(call.case)
    shape = (1, c, h, w)
    if call.form in ("paper", "general"):
        general = call.form == "general"
        case = make_case(
            shape, g, call.dtype, shift=general, b=general, relu_u=general, relu_z=general,
            channels_last=call.channels_last, parameters=torch.float32, gain=2 / (c // g) ** 0.5, d_attention=general,
        )  # fmt: skip
        y_and_A, z, lse = run_forward(backend, case, config=call.forward_config, out_dtype=torch.float32)
        gradients = run_backward(backend, case, z, lse, config=call.backward_config)
        check(case, dataclasses.replace(gradients, y=y_and_A.y, A=y_and_A.A))
        return
    case = make_norm_case(shape, g, call.dtype, channels_last=call.channels_last, parameters=torch.float32)
    buffers = make_buffers(case)
    if call.form == "folded":
        results = run_folded(norm_backend, case, buffers, config=call.forward_config, out_dtype=torch.float32)
        check_norm_forward(case, results, interpreted=False, buffers=buffers, batch=False)
        return
    after = buffers.clone()
    results = run_norm_forward(norm_backend, case, after, config=call.forward_config, out_dtype=torch.float32)
    check_norm_forward(case, results, interpreted=False, buffers=buffers, after=after)
    check_norm(case, run_norm_backward(norm_backend, case, config=call.backward_config))
