"""What the C++ kernels touch: all they are given lies among NaN, and stays as it is.

What they write outside of what they allocate, `make sanitize` shows.
"""

import pytest
import torch
from ulsam_fused.kernels.contract import Exchange, NormSaved
from ulsam_fused.kernels.cpu import backend, build, norm_backend

from tests.helpers.golden import make_case, saved
from tests.helpers.guards import guard_allocations
from tests.helpers.norm_forward_golden import make_buffers
from tests.helpers.norm_golden import make_norm_case
from tests.helpers.norm_golden import saved as norm_saved
from tests.kernels.norms import run_folded

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))

# no vector divides anything; every vector divides everything; one column; strips of few large maps and of maps that
# share lines; 7x7
SHAPES = [
    ((3, 6, 9, 5), 2),
    ((1, 32, 8, 16), 2),
    ((2, 10, 5, 1), 1),
    ((1, 18, 56, 61), 1),
    ((2, 24, 40, 37), 8),
    ((2, 6, 7, 7), 2),
]


@pytest.mark.parametrize(("shape", "num_splits"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
def test_stays_inside_its_tensors(
    shape: tuple[int, int, int, int],
    num_splits: int,
    dtype: torch.dtype,
    nhwc: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"channels_last": nhwc, "relu_u": True, "relu_z": True}
    case, norm = make_case(shape, num_splits, dtype, **options), make_norm_case(shape, num_splits, dtype, **options)
    alone = make_norm_case(shape, num_splits, dtype, batch1=False, batch2=False, **options)
    buffers, (z, lse) = make_buffers(norm), saved(case)
    perfect, perfect_alone = NormSaved(*norm_saved(norm)), NormSaved(*norm_saved(alone))
    guards = guard_allocations(monkeypatch)
    for given in (case, norm, alone):
        for name, t in vars(given).items():
            if isinstance(t, torch.Tensor):
                setattr(given, name, guards.constant(t))
    results = [
        *backend.forward(case.tensors(), case.options()),
        *backend.backward(case.dy, case.d_attention, case.tensors(), z, lse, case.options()),
        *run_folded(norm_backend, norm, buffers).values(),
    ]
    for given, kept in ((norm, perfect), (alone, perfect_alone)):
        results += norm_backend.norm_forward(given.tensors(), given.options(), Exchange())
        arriving = given.dy, given.d_attention
        results += norm_backend.norm_backward(*arriving, given.tensors(), kept, given.options())
    assert guards.stand()
    assert not any(t.isnan().any() for t in results if t is not None)
