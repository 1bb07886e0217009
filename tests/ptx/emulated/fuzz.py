"""Random calls: shape, type, layout, form and tiles; PTX_SEED begins another series, PTX_CASES is its length."""

import os
import random

import pytest
import torch
from ulsam_fused.kernels.gpu import backend, norm_backend
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig

from tests.helpers.golden import check, make_case, run_backward, run_forward
from tests.helpers.launches import slab, split
from tests.helpers.layouts import STRIDED, one_number
from tests.helpers.norm_forward_golden import check_norm_forward, run_norm_forward
from tests.helpers.norm_golden import check_norm, make_norm_case, run_norm_backward

SEED, CASES = int(os.environ.get("PTX_SEED", "0")), int(os.environ.get("PTX_CASES", "24"))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def config(draw: random.Random) -> LaunchConfig:
    tile = {
        "block_w": draw.choice((8, 16, 32)), "block_c": draw.choice((4, 8, 32)), "block_p": draw.choice((8, 16, 64)),
        "block_k": draw.choice((4, 16, 32)), "num_warps": draw.choice((1, 2, 4)), "columns": draw.choice((1, 2, 4)),
        "strip_columns": draw.choice((1, 3, 4, 7)),
    }  # fmt: skip
    return draw.choice((slab(**tile), split(draw.choice((7, 14)), **tile)))


@pytest.mark.parametrize("seed", range(SEED, SEED + CASES))
def test_random_call(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    g = draw.choice((1, 1, 2, 3))
    shape = (draw.randint(1, 3), g * draw.choice((1, 2, 3, 5, 8, 17)), draw.randint(1, 16), draw.randint(2, 20))
    dtype, channels_last = draw.choice(DTYPES), draw.random() < 0.5
    relu_u, relu_z = draw.random() < 0.5, draw.random() < 0.5
    parameters = draw.choice((None, torch.promote_types(dtype, torch.float32)))
    shared = {"channels_last": channels_last, "parameters": parameters, "relu_u": relu_u, "relu_z": relu_z}
    out_dtype = torch.promote_types(dtype, torch.float32)
    view = draw.choice((None, *STRIDED[:-1])) if draw.random() < 0.5 else None
    if draw.random() < 0.6:
        case = make_case(shape, g, dtype, shift=draw.random() < 0.7, b=draw.random() < 0.7, **shared)
        case.x = case.x if view is None else view(case.x)
        case.dy = one_number(case.dy) if draw.random() < 0.2 else case.dy
        results, z, lse = run_forward(backend, case, config=config(draw), out_dtype=out_dtype)
        check(case, results)
        check(case, run_backward(backend, case, z, lse, config=config(draw)))
        return
    norms = draw.choice(((True, True), (True, False), (False, True)))
    case = make_norm_case(shape, g, dtype, batch1=norms[0], batch2=norms[1], **shared)
    case.x = case.x if view is None else view(case.x)
    results = run_norm_forward(norm_backend, case, config=config(draw), out_dtype=out_dtype)
    check_norm_forward(case, results, interpreted=False)
    check_norm(case, run_norm_backward(norm_backend, case, config=config(draw)))
