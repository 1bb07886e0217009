"""The backward with BatchNorm on batch statistics against float64 autograd; what is saved is a perfect forward's."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.contract import NormSaved
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig

from tests.helpers.guards import guard_allocations
from tests.helpers.launches import slab, split
from tests.helpers.layouts import (
    STRIDED,
    channels_last,
    cropped,
    every_other_channel,
    one_number,
    same_image,
    unaligned,
)
from tests.helpers.norm_golden import (
    GRADIENTS,
    NormCase,
    budgets,
    check_norm,
    forward,
    make_norm_case,
    run_norm_backward,
    run_norm_reference,
    saved,
)
from tests.kernels.norms import Twins, gradients_of_twins

norm_launcher = pytest.importorskip("ulsam_fused.kernels.gpu.norm_backend", reason="needs Triton")
launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")

FORMATS = pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "channels_last"])
REGIMES = pytest.mark.parametrize("config", [slab(), split(2)], ids=["slab", "split"])
NORMS = pytest.mark.parametrize(
    ("batch1", "batch2"), [(True, True), (True, False), (False, True)], ids=["both", "depthwise", "pointwise"]
)


def backward(case: NormCase, config: LaunchConfig | None, **options: Any) -> dict[str, Tensor | None]:
    __tracebackhide__ = True
    results = run_norm_backward(norm_launcher, case, config=config, **options)
    check_norm(case, results, interpreted=launcher.INTERPRETED)
    return results


# --- forms and sizes ----------------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize(
    ("relu_u", "relu_z", "config"),
    [(False, False, slab()), (True, False, split(2)), (False, True, split(2)), (True, True, slab())],
    ids=["-", "u", "z", "uz"],
)
def test_norms_and_activations(
    relu_u: bool, relu_z: bool, config: LaunchConfig, batch1: bool, batch2: bool, device: str
) -> None:
    case = make_norm_case((2, 6, 3, 5), 2, device=device, batch1=batch1, batch2=batch2, relu_u=relu_u, relu_z=relu_z)
    results = backward(case, config)
    if not relu_z:
        assert results["dbeta2"].count_nonzero() == 0, "without act_z the softmax does not see a constant"


@NORMS
@FORMATS
def test_without_shifts(batch1: bool, batch2: bool, nhwc: bool, device: str) -> None:
    case = make_norm_case(
        (2, 4, 3, 4), 2, device=device, batch1=batch1, batch2=batch2, biases=False, channels_last=nhwc
    )
    backward(case, slab())


@FORMATS
@pytest.mark.parametrize(("c", "g"), [(1, 1), (3, 3), (3, 1), (6, 2), (5, 1)])
def test_channels_around_the_blocks(c: int, g: int, nhwc: bool, device: str) -> None:
    """G of 1, 3 and 5 channels, in tiles of 4 and 2."""
    config = slab(block_c=2, block_k=4) if nhwc else split(2, block_c=4, block_k=2)
    backward(make_norm_case((2, c, 3, 5), g, device=device, channels_last=nhwc), config)


@pytest.mark.parametrize("shape", [(2, 2, 1, 1), (1, 2, 1, 2), (1, 2, 2, 1), (3, 2, 2, 2), (1, 1, 9, 17)])
def test_small_maps_and_wide(shape: tuple[int, int, int, int], device: str) -> None:
    case = make_norm_case(shape, 1, device=device, relu_u=False, relu_z=False)
    results = backward_of_any_map(case, slab())
    if shape[2] * shape[3] == 1:
        torch.testing.assert_close(results["dx"], 2 * case.dy)


def backward_of_any_map(case: NormCase, config: LaunchConfig) -> dict[str, Tensor | None]:
    """Without the demand that dy be a wrong dx, for all budgets but dx's."""
    results = run_norm_backward(norm_launcher, case, config=config)
    golden = run_norm_reference(case, torch.float64)
    for name, budget in budgets(case, golden, results, launcher.INTERPRETED).items():
        assert (results[name].double() - golden[name]).norm() <= budget, name
    return results


@pytest.mark.parametrize("shape", [(9, 1, 6, 9), (1, 1, 66, 1)], ids=str)
def test_images_and_chunks_around_the_blocks_of_the_sums(shape: tuple[int, int, int, int], device: str) -> None:
    """3 chunks, in tiles of 8 images and 4 chunks; 33 chunks, in tiles of 1 image and 32 chunks."""
    config = split(2, block_p=2 if shape[3] == 1 else 8, flat_programs=1000)  # as many chunks as there can be
    backward(make_norm_case(shape, 1, torch.float32, device), config)


@pytest.mark.parametrize("batch", [1, 3])
def test_chosen_configuration(batch: int, device: str) -> None:
    """One image splits and three do not, where there is one multiprocessor, as in the interpreter."""
    backward(make_norm_case((batch, 3, 8, 3), 1, torch.float32, device), None)


# --- types --------------------------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(dtype: torch.dtype, batch1: bool, batch2: bool, device: str) -> None:
    """In channels_last; other tests have each type in NCHW, and `tests/ptx/emulated/shipped.py` float16."""
    case = make_norm_case((2, 6, 4, 4), 2, dtype, device, batch1=batch1, batch2=batch2, channels_last=True)
    backward(case, split(3))
    backward(case, split(3, block_c=1, block_w=2, strip_columns=2))  # whole tiles


@NORMS
@pytest.mark.parametrize(
    ("dtype", "parameters", "norms"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.bfloat16),
    ],
)
def test_parameters_of_other_types(
    dtype: torch.dtype, parameters: torch.dtype, norms: torch.dtype, batch1: bool, batch2: bool, device: str
) -> None:
    case = make_norm_case(
        (2, 4, 3, 4), 1, dtype, device, batch1=batch1, batch2=batch2, parameters=parameters, norms=norms
    )
    case.dy = torch.randn_like(case.dy, dtype=torch.float32)
    backward(case, slab())


# --- values -------------------------------------------------------------------------------------------------------


@REGIMES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constant_channel(dtype: torch.dtype, config: LaunchConfig, device: str) -> None:
    """Variance 0: every window ties, and r1 is as large as it can be."""
    case = make_norm_case((2, 3, 3, 5), 1, dtype, device)
    case.x[:, 1] = 0.75
    case.beta1 = case.beta1.abs()
    assert forward(case).first[3][1] == 0
    backward(case, config)


@NORMS
@REGIMES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_ties(dtype: torch.dtype, config: LaunchConfig, batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((1, 3, 5, 9), 1, dtype, device, batch1=batch1, batch2=batch2)
    case.x = torch.randint_like(case.x, 3)
    case.beta1 = case.beta1 / 16 + 0.01  # no u is exactly 0
    backward(case, config)


@pytest.mark.parametrize(
    ("parameter", "batch1", "batch2"),
    [
        ("dw", True, True),
        ("dw", False, True),
        ("gamma1", True, True),
        ("gamma1", True, False),
        ("gamma2", True, True),
        ("gamma2", False, True),
    ],
)
@pytest.mark.parametrize("signs", ["zero", "mixed"])
def test_signs(parameter: str, signs: str, batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((2, 3, 3, 5), 3, device=device, batch1=batch1, batch2=batch2)
    given = getattr(case, parameter)
    factor = {"zero": [0.0, 0.0, 0.0], "mixed": [1.0, -1.0, 0.0]}[signs]
    setattr(case, parameter, given.abs() * torch.tensor(factor, dtype=given.dtype, device=device))
    case.beta1 = case.beta1.abs()
    results = backward(case, slab())
    if signs == "zero" and parameter == "gamma1":
        assert results["ddw"].count_nonzero() == 0


@NORMS
@REGIMES
def test_peaked_maps(config: LaunchConfig, batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((2, 6, 5, 4), 1, torch.float32, device, batch1=batch1, batch2=batch2, peak=30)
    case.pw = case.pw.abs()
    assert forward(case).A.amax() > 0.4  # neighbours that share their maxima share the peak
    backward(case, config)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch2", [False, True])
def test_mean_1000(batch2: bool, dtype: torch.dtype, device: str) -> None:
    """What x loses when it is centred too late: 1000 * eps of every sum, where dx and the budgets see it."""
    case = make_norm_case((2, 3, 4, 5), 1, dtype, device, batch2=batch2, mean=1000.0)
    case.dy /= 1000
    results = backward(case, slab())
    # the same x about 0, which float32 holds exactly, has the same gradients but for what dA adds
    moved = dataclasses.replace(case, x=case.x - 1000, dy=None)
    far = backward(dataclasses.replace(case, dy=None), slab())
    near = run_norm_reference(moved, torch.float64)
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-4}[dtype]
    for name in ("dx", "dgamma1", "dbeta1", "dpw"):
        assert (far[name] - near[name]).norm() <= tolerance * near[name].norm(), name
    assert results["dx"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_of_dw_where_eps_matters(dtype: torch.dtype, device: str) -> None:
    """With an eps of the variance's size d(dw) is no small difference: zeros, or another factor, would not pass."""
    case = make_norm_case((2, 4, 3, 5), 2, dtype, device, eps1=0.5)
    results = backward(case, slab())
    golden = run_norm_reference(case, torch.float64)
    assert golden["ddw"].norm() > 100 * budgets(case, golden, results, False)["ddw"]


# --- what arrives -------------------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize(("arriving", "config"), [("dy", split(2)), ("d_attention", slab())], ids=["dy", "d_attention"])
def test_one_gradient_alone(arriving: str, config: LaunchConfig, batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((2, 4, 3, 5), 2, device=device, batch1=batch1, batch2=batch2)
    absent = {"dy": "d_attention", "d_attention": "dy"}[arriving]
    backward(dataclasses.replace(case, **{absent: None}), config)


@pytest.mark.parametrize("batch1", [False, True])
@pytest.mark.parametrize(
    ("layout_x", "layout_dy"),
    [
        (None, one_number),
        (channels_last, one_number),
        (channels_last, None),
        (None, channels_last),
        (None, same_image),
        (None, every_other_channel),
        (channels_last, cropped),
        (None, unaligned),
    ],
    ids=lambda f: f.__name__ if f else "contiguous",
)
def test_strides_of_dy(
    layout_x: Callable[[Tensor], Tensor] | None,
    layout_dy: Callable[[Tensor], Tensor] | None,
    batch1: bool,
    device: str,
) -> None:
    case = make_norm_case((2, 4, 2, 4), 1, torch.float32, device, batch1=batch1)
    case.x = layout_x(case.x) if layout_x else case.x
    case.dy = layout_dy(case.dy) if layout_dy else case.dy
    backward(case, slab())


@pytest.mark.parametrize("layout", [*STRIDED[:-1]], ids=lambda f: f.__name__)
@pytest.mark.parametrize("batch1", [False, True])
def test_strided_x(batch1: bool, layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = make_norm_case((2, 3, 2, 5), 1, device=device, batch1=batch1)
    case.x = layout(case.x)
    backward(case, split(1))


@NORMS
def test_strided_parameters_and_attention_gradient(batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((1, 6, 2, 3), 2, device=device, batch1=batch1, batch2=batch2)
    names = ("dw", "gamma1", "beta1", "pw", "gamma2", "beta2")
    given = {name: getattr(case, name) for name in names if getattr(case, name) is not None}
    twice = {name: t.repeat_interleave(2)[::2] for name, t in given.items()}
    case.d_attention = case.d_attention[:1, :, :, :1].expand(case.d_attention.shape)
    backward(dataclasses.replace(case, **twice), slab())


# --- memory and plans -----------------------------------------------------------------------------------------------


def test_strips_have_scratch_of_their_own(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the general form: the interpreter would give right results of two strips in one place."""
    case = make_norm_case((1, 2, 14, 5), 1, torch.float32, device, batch1=False)
    perfect = saved(case)
    guards = guard_allocations(monkeypatch)
    norm_launcher.norm_backward(
        case.dy, case.d_attention, case.tensors(), NormSaved(*perfect), case.options(), None, config=split()
    )
    assert (1, 1, 2, 2, 11, 8) in [tuple(t.shape) for t in guards.made]
    assert guards.unwritten() == []
    assert guards.stand()


def test_plans_are_kept_by_eps(device: str) -> None:
    """Two calls that differ in eps alone, in one process."""
    case = make_norm_case((2, 3, 4, 5), 1, device=device)
    for eps in (1e-5, 0.3):
        case = dataclasses.replace(case, eps1=eps, eps2=2 * eps)
        check_norm(case, run_norm_backward(norm_launcher, case, config=slab()), interpreted=launcher.INTERPRETED)


# --- one result, whoever asks -------------------------------------------------------------------------------------


@NORMS
@FORMATS
def test_deterministic_and_apart_in_memory(batch1: bool, batch2: bool, nhwc: bool, device: str) -> None:
    case = make_norm_case((2, 2, 3, 3), 1, torch.float32, device, batch1=batch1, batch2=batch2, channels_last=nhwc)
    one, other = (run_norm_backward(norm_launcher, case, config=split(2)) for _ in range(2))
    given = [name for name in GRADIENTS if one[name] is not None]
    for name in given:
        assert torch.equal(one[name], other[name]), name
    storages = {one[name].untyped_storage().data_ptr() for name in given}
    assert len(storages) == len(given), "gradients must not share memory"


@NORMS
@pytest.mark.parametrize(("dtype", "relu_z"), [(torch.float64, True), (torch.float16, False)])
def test_group(dtype: torch.dtype, relu_z: bool, batch1: bool, batch2: bool, device: str) -> None:
    """Twins have the gradients of their images stacked twice: of dx one half, of a parameter half of the sum."""
    case = make_norm_case((2, 4, 3, 4), 2, dtype, device, batch1=batch1, batch2=batch2, relu_z=relu_z)
    group = Twins()
    z, lse, first, second = saved(case)
    if batch1:
        first[4] *= 2
    second[5] *= 2
    gradients = norm_launcher.norm_backward(
        case.dy, case.d_attention, case.tensors(), NormSaved(z, lse, first, second), case.options(), group,
        config=slab(),
    )  # fmt: skip
    assert group.calls == batch1 + batch2
    check_norm(
        case, dict(zip(GRADIENTS, gradients, strict=True)), gradients_of_twins(case), interpreted=launcher.INTERPRETED
    )
