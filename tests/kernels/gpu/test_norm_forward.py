"""The forward kernels with BatchNorm against the float64 reference: all results, and the running statistics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig, MomentsConfig

from tests.helpers.guards import Guards, guard_allocations
from tests.helpers.launches import count_launches, slab, split
from tests.helpers.layouts import STRIDED, first_channels_last, unaligned
from tests.helpers.norm_forward_golden import Buffers, check_norm_forward, make_buffers, run_norm_forward, run_reference
from tests.helpers.norm_golden import NormCase, make_norm_case
from tests.kernels.norms import Twins, run_folded

launcher = pytest.importorskip("ulsam_fused.kernels.gpu.norm_backend", reason="needs Triton")
from ulsam_fused.kernels.gpu.backend import INTERPRETED  # noqa: E402

FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
NORMS = pytest.mark.parametrize(
    ("batch1", "batch2"), [(True, True), (True, False), (False, True)], ids=["both", "first", "second"]
)


def parts_of(x: Tensor, block_c: int = 2, block_p: int = 16, tiles: int = 2) -> MomentsConfig:
    """Small tiles, so that small tensors have several parts; `tiles` of them per part."""
    n, c, h, w = x.shape
    chosen = configs.moments_config((n, c, h, w), x.element_size(), False, 1)
    pixels = tiles * block_p
    return dataclasses.replace(
        chosen, block_c=block_c, block_p=block_p, num_warps=1,
        parts=configs.cdiv(n * h * w, pixels), part_pixels=pixels,
    )  # fmt: skip


def norm_forward(
    case: NormCase, config: LaunchConfig | None, buffers: Buffers | None = None, **options: Any
) -> dict[str, Tensor]:
    """Runs and checks a forward; the running statistics too, where buffers are given, which stay as they are."""
    __tracebackhide__ = True
    if config is not None:
        options.setdefault("first_config", parts_of(case.x))
    after = None if buffers is None else buffers.clone()
    results = run_norm_forward(launcher, case, after, config=config, **options)
    check_norm_forward(case, results, interpreted=INTERPRETED, buffers=buffers, after=after)
    return results


# --- forms, types and layouts ---------------------------------------------------------------------------------------


@NORMS
@FORMATS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norms_and_types(dtype: torch.dtype, channels_last: bool, batch1: bool, batch2: bool, device: str) -> None:
    """`tests/ptx/emulated/shipped.py` has float32 and float16, in both layouts."""
    relu = dtype != torch.float64 or channels_last
    case = make_norm_case(
        (2, 6, 8, 5), 2, dtype, device, batch1=batch1, batch2=batch2, channels_last=channels_last,
        relu_u=relu, relu_z=relu, peak=3.0,
    )  # fmt: skip
    out_dtype = None if channels_last else case.compute_dtype
    norm_forward(case, split() if channels_last else slab(), make_buffers(case), out_dtype=out_dtype)


@NORMS
@pytest.mark.parametrize(("relu_u", "relu_z"), [(False, True), (True, False)])
def test_no_biases(relu_u: bool, relu_z: bool, batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case(
        (2, 4, 3, 5), 2, device=device, batch1=batch1, batch2=batch2, biases=False, relu_u=relu_u, relu_z=relu_z
    )
    norm_forward(case, slab(), make_buffers(case, biases=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_beside_16_bits(dtype: torch.dtype, device: str) -> None:
    case = make_norm_case((2, 4, 3, 4), 1, dtype, device, parameters=torch.float32)
    norm_forward(case, slab(), make_buffers(case), out_dtype=torch.float32)


def test_norms_of_another_type_than_convolutions(device: str) -> None:
    case = make_norm_case((2, 4, 3, 4), 1, torch.float16, device, norms=torch.float32)
    norm_forward(case, slab(), make_buffers(case), out_dtype=torch.float32)


@pytest.mark.parametrize("layout", STRIDED, ids=lambda f: f.__name__)
def test_strided_x(layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = make_norm_case((2, 3, 2, 5), 1, device=device)
    case.x = layout(case.x)
    norm_forward(case, slab())


@pytest.mark.parametrize("layout", [unaligned, first_channels_last], ids=lambda f: f.__name__)
def test_strided_x_of_16_bits(layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = make_norm_case((1, 8, 8, 8), 1, torch.float16, device)
    case.x = layout(case.x)
    norm_forward(case, split(block_c=8, block_k=8), out_dtype=torch.float32)


def test_strided_parameters(device: str) -> None:
    case = make_norm_case((2, 4, 2, 3), 2, device=device)
    names = ("dw", "gamma1", "beta1", "pw", "gamma2", "beta2")
    twice = {name: getattr(case, name).repeat_interleave(2)[::2] for name in names}
    norm_forward(dataclasses.replace(case, **twice), slab())


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "g", "config"),
    [
        ((3, 2, 1, 1), 1, slab()),
        ((1, 3, 1, 5), 3, slab()),
        ((2, 3, 3, 4), 3, slab()),  # G = 1
        ((2, 6, 3, 4), 2, split()),  # G = 3
        ((1, 5, 15, 3), 1, split()),
        ((1, 2, 15, 5), 1, split(14, block_p=8)),
        ((1, 9, 2, 17), 1, slab(block_w=8)),
    ],
    ids=lambda p: "x".join(map(str, p)) if isinstance(p, tuple) else None,
)
@FORMATS
def test_shapes(
    shape: tuple[int, int, int, int], g: int, config: LaunchConfig, channels_last: bool, device: str
) -> None:
    case = make_norm_case(shape, g, torch.float32, device, channels_last=channels_last)
    norm_forward(case, config, make_buffers(case))


@pytest.mark.parametrize("batch", [1, 3])
def test_chosen_configuration(batch: int, device: str) -> None:
    case = make_norm_case((batch, 3, 8, 9), 1, torch.float32, device)
    norm_forward(case, None)


@pytest.mark.parametrize(("block_c", "block_p", "tiles"), [(1, 16, 1), (4, 16, 3), (8, 32, 1), (2, 64, 1), (2, 16, 9)])
@FORMATS
def test_parts_of_the_moments(block_c: int, block_p: int, tiles: int, channels_last: bool, device: str) -> None:
    """Tiles that end before, at and after an image's last pixel; one part, and more than one."""
    x = make_norm_case((3, 5, 4, 6), 1, device=device, channels_last=channels_last, mean=2.0).x
    mean, var, count = launcher.moments(x, config=parts_of(x, block_c, block_p, tiles))
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-14, atol=0)
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0), rtol=1e-14, atol=0)
    assert (count == 72).all()


def test_more_parts_than_lanes(device: str) -> None:
    """300 parts of 16 pixels whose means differ: a lane combines several."""
    case = make_norm_case((3, 2, 40, 40), 1, torch.float32, device)
    case.x += torch.linspace(-3, 3, 40, device=device)[:, None]
    norm_forward(case, slab(block_c=2, block_w=64, block_p=64), first_config=parts_of(case.x, block_p=16, tiles=1))


def test_plans_are_kept_by_eps_and_by_the_number_of_parts(device: str) -> None:
    """Calls that differ in one of these alone, in one process."""
    case = make_norm_case((2, 3, 4, 5), 1, device=device)
    for eps, tiles in ((1e-5, 2), (0.3, 2), (0.3, 1)):  # the fewer parts first: a plan of theirs misses one
        case = dataclasses.replace(case, eps1=eps, eps2=2 * eps)
        norm_forward(case, slab(), first_config=parts_of(case.x, tiles=tiles))


def test_running_statistics_are_marked_as_written(device: str) -> None:
    """Autograd may have saved them: it must know that they are no longer what they were."""
    case = make_norm_case((2, 3, 4, 5), 1, device=device)
    buffers = make_buffers(case)
    before = {name: getattr(buffers, name)._version for name in ("mean1", "var1", "mean2", "var2")}
    run_norm_forward(launcher, case, buffers, config=slab())
    assert all(getattr(buffers, name)._version > version for name, version in before.items())


# --- statistics that are hard to compute ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_large_mean_leaves_the_variance(dtype: torch.dtype, device: str) -> None:
    """The mean of squares, less the square of the mean, would be off by several percent."""
    case = make_norm_case((3, 2, 8, 8), 1, dtype, device, mean=1000.0, relu_u=False, relu_z=False)
    results = norm_forward(case, slab(), make_buffers(case), out_dtype=torch.float32)
    true = case.x.double().var((0, 2, 3), correction=0)
    naive = case.x.float().square().mean((0, 2, 3)) - case.x.float().mean((0, 2, 3)).square()
    assert ((results["var"] - true).abs() < 1e-5 * true).all()
    assert ((naive - true).abs() > 1e-3 * true).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.7, 1000.1, -3e4])
def test_a_constant_channel_has_no_variance(value: float, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(3, 3, 7, 5, dtype=torch.float64, device=device).to(dtype)
    x[:, 1] = value
    mean, var, _ = launcher.moments(x, config=parts_of(x))
    assert var[1] == 0
    assert mean[1] == x[0, 1, 0, 0].to(mean.dtype)
    assert (var[[0, 2]] > 0.1).all()


@pytest.mark.parametrize("config", [slab(), split()], ids=["slab", "split"])
def test_constant_x(config: LaunchConfig, device: str) -> None:
    """Then z is constant too: both variances are 0, and every pixel has the same attention."""
    case = make_norm_case((3, 3, 8, 5), 1, torch.float32, device)
    case.x = torch.full_like(case.x, 0.7)
    results = run_norm_forward(launcher, case, config=config, first_config=parts_of(case.x))
    assert not results["var"].any()
    assert not results["var2"].any()
    torch.testing.assert_close(results["A"], torch.full_like(results["A"], 1 / 40))
    assert (results["rstd"] == results["rstd"][0]).all()


def test_a_constant_channel_beside_others(device: str) -> None:
    case = make_norm_case((2, 3, 8, 5), 1, torch.float32, device)
    case.x[:, 1] = 0.7
    assert norm_forward(case, split(), make_buffers(case))["var"][1] == 0


def test_ties(device: str) -> None:
    case = make_norm_case((2, 3, 5, 6), 1, torch.float32, device)
    case.x = case.x.round()
    norm_forward(case, slab())


@pytest.mark.parametrize("gain", [60.0, -60.0])
@pytest.mark.parametrize("config", [slab(), split()], ids=["slab", "split"])
def test_peaked_maps(gain: float, config: LaunchConfig, device: str) -> None:
    case = make_norm_case((2, 3, 8, 5), 1, torch.float32, device, relu_z=False)
    case.gamma2 = torch.full_like(case.gamma2, gain)
    assert norm_forward(case, config)["A"].amax() > 0.4  # the lowest are ties


def test_nan_stays_in_its_subspace(device: str) -> None:
    """Statistics are of all images, so it is in all of them."""
    case = make_norm_case((2, 4, 3, 5), 2, device=device)
    case.x[0, 0, 1, 2] = torch.nan
    results = run_norm_forward(launcher, case, config=slab(), first_config=parts_of(case.x))
    assert results["A"][:, 0].isnan().all()
    assert not results["A"][:, 1].isnan().any()
    assert results["var"].isnan().tolist() == [True, False, False, False]


# --- running statistics ---------------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_running_statistics_of_several_steps(dtype: torch.dtype, batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((2, 4, 3, 4), 2, dtype, device, batch1=batch1, batch2=batch2)
    buffers = make_buffers(case)
    for step in range(3):
        case.x = torch.randn_like(case.x) * (step + 1) + step
        before = buffers.clone()
        results = run_norm_forward(launcher, case, buffers, config=slab(), first_config=parts_of(case.x))
        check_norm_forward(case, results, interpreted=INTERPRETED, buffers=before, after=buffers)
        for name, used in (("mean1", batch1), ("var1", batch1), ("mean2", batch2), ("var2", batch2)):
            assert torch.equal(getattr(before, name), getattr(buffers, name)) != used, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_running_statistics_of_16_bits(dtype: torch.dtype, device: str) -> None:
    case = make_norm_case((2, 4, 3, 4), 2, torch.float32, device)
    norm_forward(case, split(), make_buffers(case, dtype))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_at_its_ends(momentum: float, device: str) -> None:
    case = make_norm_case((2, 4, 3, 4), 2, device=device)
    buffers = dataclasses.replace(make_buffers(case), momentum1=momentum, momentum2=momentum)
    norm_forward(case, slab(), buffers)


# --- other processes ------------------------------------------------------------------------------------------------


def test_statistics_of_all_processes(device: str) -> None:
    case = make_norm_case((2, 4, 8, 3), 2, device=device)
    whole = dataclasses.replace(case, x=torch.cat((case.x, case.x)))
    buffers = make_buffers(case)
    here, alone = buffers.clone(), buffers.clone()
    twins = Twins()
    part = run_norm_forward(launcher, case, here, group=twins, config=split(), first_config=parts_of(case.x))
    assert twins.gathered == [(1, 3, 4), (1, 3, 2)]
    both = run_norm_forward(launcher, whole, alone, config=split(), first_config=parts_of(whole.x))
    check_norm_forward(whole, both, interpreted=INTERPRETED, buffers=buffers, after=alone)
    for name in ("y", "A", "z", "lse"):
        torch.testing.assert_close(part[name], both[name][:2], rtol=1e-12, atol=1e-12)
    for name in ("scale", "mean", "rstd", "var", "count", "gain", "offset", "mean2", "rstd2", "var2", "count2"):
        torch.testing.assert_close(part[name], both[name], rtol=1e-12, atol=1e-12)
    for name in ("mean1", "var1", "mean2", "var2"):
        torch.testing.assert_close(getattr(here, name), getattr(alone, name), rtol=1e-12, atol=1e-12)
        assert not torch.equal(getattr(here, name), getattr(buffers, name))
    assert (both["count"] == 96).all()


class WithAnEmptyProcess:
    def gather(self, moments: Tensor) -> Tensor:
        nothing = torch.full_like(moments, torch.nan)
        nothing[:, 0] = 0
        return torch.cat((nothing, moments, nothing))


def test_an_empty_process_changes_nothing(device: str) -> None:
    case = make_norm_case((2, 4, 3, 4), 2, device=device)
    results = run_norm_forward(launcher, case, group=WithAnEmptyProcess(), config=slab())
    check_norm_forward(case, results, interpreted=INTERPRETED)


# --- what the kernels touch and launch ------------------------------------------------------------------------------


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Guards:
    """Every allocation of the launcher goes through these guards."""
    return guard_allocations(monkeypatch)


ODD, EVEN, THIN = (2, 6, 9, 5), (1, 8, 8, 8), (2, 4, 5, 1)


@pytest.mark.parametrize(
    ("shape", "config"),
    [(ODD, slab()), (ODD, split(block_p=8)), (EVEN, split(block_c=4)), (THIN, slab())],
    ids=["odd-slab", "odd-split", "even-split", "thin-slab"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stays_inside_its_tensors(
    shape: tuple[int, int, int, int], config: LaunchConfig, dtype: torch.dtype, guards: Guards, device: str
) -> None:
    case = make_norm_case(shape, 2, dtype, device, channels_last=dtype == torch.float16)
    buffers = make_buffers(case)
    for name in ("x", "dw", "gamma1", "beta1", "pw", "gamma2", "beta2"):
        setattr(case, name, guards.constant(getattr(case, name)))
    for name in ("bias1", "bias2"):
        setattr(buffers, name, guards.constant(getattr(buffers, name)))
    given = buffers.clone()
    for name in ("mean1", "var1", "mean2", "var2"):
        setattr(buffers, name, torch.empty_like(getattr(given, name)).copy_(getattr(given, name)))
    results = run_norm_forward(
        launcher, case, buffers, out_dtype=torch.float32, config=config, first_config=parts_of(case.x)
    )
    assert guards.stand()
    check_norm_forward(case, results, interpreted=INTERPRETED, buffers=given, after=buffers)
    y, A = run_folded(launcher, case, given, config=config).values()
    assert guards.stand()
    assert not y.isnan().any()
    assert not A.isnan().any()


@NORMS
def test_two_runs_agree_bit_by_bit(batch1: bool, batch2: bool, device: str) -> None:
    case = make_norm_case((2, 6, 9, 5), 2, torch.float32, device, batch1=batch1, batch2=batch2)
    first, second = (run_norm_forward(launcher, case, config=split(), first_config=parts_of(case.x)) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_attention_not_asked_for(device: str) -> None:
    case = make_norm_case((2, 2, 3, 4), 1, device=device)
    with_it, without = (run_norm_forward(launcher, case, config=slab(), need_attention=need) for need in (True, False))
    assert torch.equal(with_it["y"], without["y"])


@NORMS
def test_launches(batch1: bool, batch2: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count_launches(monkeypatch)
    case = make_norm_case((1, 2, 8, 3), 1, device=device, batch1=batch1, batch2=batch2)
    operations: list[str] = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operations.append(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        launcher.norm_forward(case.tensors(), case.options(), Exchange(), config=split(), first_config=parts_of(case.x))
    expected = {"norm_logits_kernel": 1, "norm_apply_kernel": 1} | ({"moments_kernel": 1} if batch1 else {})
    assert counts == expected
    if not INTERPRETED:  # which copies its arguments
        assert {name for name in operations if "empty" not in name} == set()


@pytest.mark.parametrize(("config", "launches"), [(slab(), 1), (split(), 2)], ids=["slab", "split"])
def test_folded_launches(config: LaunchConfig, launches: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_norm_case((1, 2, 8, 3), 1, device=device)
    counts = count_launches(monkeypatch)
    run_folded(launcher, case, make_buffers(case), config=config)
    assert counts == {"folded_kernel": launches}


# --- the judge ------------------------------------------------------------------------------------------------------


def wrong_results(case: NormCase, buffers: Buffers) -> dict[str, dict[str, Tensor]]:
    """y and A of operators with one mistake each, computed in float64."""
    swapped = dataclasses.replace(case, gamma2=case.gamma2.flip(0))
    right = run_reference(case, buffers, torch.float64)
    uniform = torch.full_like(right["A"], 1 / right["A"][0, 0].numel())
    return {
        "identity": {"y": case.x.double(), "A": uniform},
        "running statistics": run_reference(case, buffers, torch.float64, batch=False),
        "swapped gammas": run_reference(swapped, buffers, torch.float64),
        "another eps": run_reference(dataclasses.replace(case, eps1=1e-3, eps2=1e-3), buffers, torch.float64),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mistake", ["identity", "running statistics", "swapped gammas", "another eps"])
def test_a_wrong_operator_is_noticed(mistake: str, dtype: torch.dtype, device: str) -> None:
    case = make_norm_case((2, 6, 4, 5), 2, dtype, device)
    buffers = make_buffers(case)
    wrong = {name: wrong_results(case, buffers)[mistake][name].to(dtype) for name in ("y", "A")}
    with pytest.raises(AssertionError, match="FAIL"):
        check_norm_forward(case, wrong, interpreted=False, buffers=buffers)
