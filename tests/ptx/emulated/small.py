"""One pixel of one channel of one image, in every kernel."""

from ulsam_fused.kernels.gpu import backend, norm_backend

from tests.helpers.golden import check, make_case, run_backward, run_forward
from tests.helpers.norm_forward_golden import check_norm_forward, make_buffers, run_norm_forward
from tests.helpers.norm_golden import check_norm, make_norm_case, run_norm_backward


def test_one_pixel() -> None:
    case = make_case((1, 1, 1, 1), 1)
    results, z, lse = run_forward(backend, case)
    check(case, results)
    check(case, run_backward(backend, case, z, lse))


def test_one_pixel_with_norms() -> None:
    case = make_norm_case((2, 1, 1, 1), 1, relu_u=False)  # else z may be constant, and leave no budget
    before = make_buffers(case)
    after = before.clone()
    check_norm_forward(
        case, run_norm_forward(norm_backend, case, after), interpreted=False, buffers=before, after=after
    )
    check_norm(case, run_norm_backward(norm_backend, case))
