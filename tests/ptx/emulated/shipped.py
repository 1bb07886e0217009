"""Every launch configuration that ships, executed on one or two images; PTX_PART=1/2 for every other one.

The calls are those that `benchmarks/compiled/resources.py` compiles, so that their kernels are found again. On sm_90
the instructions of each launch, per element of x and lane, may be a tenth above `benchmarks/compiled/instructions.csv`.
PTX_WRITE names a file to which such lines are added.
"""

import csv
import math
import os

import pytest
import torch
from ulsam_fused.kernels.gpu import backend, norm_backend

from benchmarks.compiled.configurations import DTYPES, Call, shipped
from tests.helpers.golden import attention_of, check, make_case, run_backward, run_forward, saved
from tests.helpers.norm_forward_golden import check_norm_forward, make_buffers, run_norm_forward
from tests.helpers.norm_golden import check_norm, make_norm_case, run_norm_backward
from tests.helpers.processes import ROOT
from tests.kernels.norms import run_folded
from tests.ptx.driver import Emulator
from tests.ptx.static import fused_across_lanes, narrow_sweeps

with (ROOT / "benchmarks/compiled/instructions.csv").open() as file:
    BUDGETS = {(row["case"], row["launch"]): float(row["instructions"]) for row in csv.DictReader(file)}
WRITE = os.environ.get("PTX_WRITE")
PART, PARTS = map(int, os.environ.get("PTX_PART", "1/1").split("/"))


@pytest.mark.parametrize("call", shipped()[PART - 1 :: PARTS], ids=str)
def test_shipped(call: Call, emulator: Emulator) -> None:
    """Its values, by the usual budgets; what its kernels touch, by the plugin; and how."""
    if call.direction in ("forward", "backward"):
        general_form(call)
    else:
        with_norms(call)
    images = 1 if call.direction in ("forward", "backward") else 2
    counted = [launch.issued / (images * math.prod(call.shape)) for launch in emulator.launches]
    if WRITE:
        with open(WRITE, "a") as file:
            file.writelines(f"{call},{launch},{count:.1f}\n" for launch, count in enumerate(counted))
    elif emulator.target.arch == 90:
        for launch, count in enumerate(counted):
            assert count <= 1.1 * BUDGETS[str(call), str(launch)], (count, launch)
    swept = 0
    for module in (launch.module for launch in emulator.launches):
        assert fused_across_lanes(module.kernel) == []
        count, narrow = narrow_sweeps(module.kernel, module.constants, DTYPES[call.dtype].itemsize)
        assert narrow == []
        swept += count
    assert swept > 0 or any(launch.module.constants.get("MAP_H") for launch in emulator.launches)


def general_form(call: Call) -> None:
    dtype, on = DTYPES[call.dtype], call.general
    case = make_case(
        (1, *call.shape), 1, dtype, parameters=torch.promote_types(dtype, torch.float32), shift=on, b=on,
        relu_u=on, relu_z=on, channels_last=call.channels_last, gain=8 / call.shape[0] ** 0.5, d_attention=False,
    )  # fmt: skip
    if on:
        case.v = case.v.abs()  # else act_z may make a map constant
    if call.direction == "backward":
        check(case, run_backward(backend, case, *saved(case), config=call.config))
        return
    results, z, lse = run_forward(backend, case, config=call.config, need_attention=False)
    results.A = attention_of(case, z, lse)
    assert results.A.amax() > 4 * torch.finfo(dtype).eps, "x in place of y would pass"
    check(case, results)


def with_norms(call: Call) -> None:
    dtype = DTYPES[call.dtype]
    case = make_norm_case(
        (2, *call.shape), 1, dtype, parameters=torch.promote_types(dtype, torch.float32),
        batch1=call.direction != "norm_backward" or call.general, channels_last=call.channels_last, peak=3.0,
    )  # fmt: skip
    if call.direction == "norm_backward":
        case.d_attention = None
        check_norm(case, run_norm_backward(norm_backend, case, config=call.config))
        return
    before = make_buffers(case)
    after = before.clone()
    if call.direction == "folded":
        results = run_folded(norm_backend, case, before, need_attention=False, config=call.config)
        results.pop("A")
    else:
        results = run_norm_forward(norm_backend, case, after, need_attention=False, config=call.config)
    check_norm_forward(
        case, results, interpreted=False, buffers=before, after=None if call.direction == "folded" else after,
        batch=call.direction != "folded",
    )  # fmt: skip
