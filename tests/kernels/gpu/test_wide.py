"""Offsets beyond 2^31 elements: a few pixels far apart in a storage of 8 GiB that is allocated but never filled."""

import pytest
import torch
from torch import Tensor

from tests.helpers.golden import Case, check, make_case, run_backward, run_forward, saved
from tests.helpers.launches import slab, split
from tests.helpers.norm_forward_golden import check_norm_forward, run_norm_forward
from tests.helpers.norm_golden import make_norm_case

geometry = pytest.importorskip("ulsam_fused.kernels.gpu.launching.geometry")
plans = pytest.importorskip("ulsam_fused.kernels.gpu.launching.plans")
launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")

FAR = 2**30 + 8
BASE = 2**31  # an offset that wraps around at 2^31 becomes negative: this keeps it inside the storage
CASES = {  # shape [N, C, H, W] and strides; the third channel, row or column begins past 2^31
    "channels": ((1, 3, 4, 5), (0, FAR, 5, 1)),
    "rows": ((1, 2, 3, 5), (0, 5, FAR, 1)),
    "columns": ((1, 2, 5, 3), (0, 1, 2, FAR)),
}


@pytest.fixture(scope="module")
def storage(device: str) -> Tensor:
    try:
        return torch.empty(2**32 + 1024, dtype=torch.float16, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        pytest.skip(f"no room for 8 GiB: {error}")


def case_of(axis: str, storage: Tensor, device: str, name: str = "x") -> Case:
    """A case of which x, or dy, lies far apart."""
    shape, strides = CASES[axis]
    case = make_case(shape, 1, torch.float16, device)
    setattr(case, name, storage.as_strided(shape, strides, BASE).copy_(getattr(case, name)))
    return case


@pytest.mark.parametrize("axis", CASES)
def test_forward(axis: str, storage: Tensor, device: str) -> None:
    case = case_of(axis, storage, device)
    check(case, run_forward(launcher, case, config=slab())[0])


@pytest.mark.parametrize("axis", CASES)
def test_backward(axis: str, storage: Tensor, device: str) -> None:
    case = case_of(axis, storage, device)
    check(case, run_backward(launcher, case, *saved(case), config=split(2)))


@pytest.mark.parametrize("axis", CASES)
def test_backward_of_a_wide_dy(axis: str, storage: Tensor, device: str) -> None:
    case = case_of(axis, storage, device, "dy")
    check(case, run_backward(launcher, case, *saved(case), config=slab()))


@pytest.mark.parametrize("axis", CASES)
def test_norm_forward(axis: str, storage: Tensor, device: str) -> None:
    norm_launcher = pytest.importorskip("ulsam_fused.kernels.gpu.norm_backend")
    shape, strides = CASES[axis]
    case = make_norm_case(shape, 1, torch.float16, device)
    case.x = storage.as_strided(shape, strides, BASE).copy_(case.x)
    results = run_norm_forward(norm_launcher, case, out_dtype=torch.float32, config=slab())
    check_norm_forward(case, results, interpreted=launcher.INTERPRETED)


def test_images_far_apart_need_no_wide_offsets(storage: Tensor, device: str) -> None:
    case = make_case((2, 2, 2, 2), 1, torch.float16, device)
    case.x = storage.as_strided(case.x.shape, (2**31 + 8, 4, 2, 1)).copy_(case.x)
    assert not geometry.is_wide(case.x)
    check(case, run_forward(launcher, case, config=slab())[0])


@pytest.mark.filterwarnings("ignore:overflow encountered in :RuntimeWarning")
def test_narrow_offsets_would_fail(storage: Tensor, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not launcher.INTERPRETED:
        pytest.skip("what an int32 overflow reads on a GPU is not known")
    case = case_of("channels", storage, device)
    monkeypatch.setattr(geometry, "is_wide", lambda x: False)
    monkeypatch.setattr(launcher, "forward_plan", plans.forward_plan.__wrapped__)  # it keeps what it has chosen
    results, _, _ = run_forward(launcher, case, config=slab())
    with pytest.raises(AssertionError, match="FAIL"):
        check(case, results)
