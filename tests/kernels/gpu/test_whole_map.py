"""Maps whose rows are written out: both directions against the reference, by `golden`, and who takes this way.

A tile is a whole map, in either layout; or in channels_last a lane of the backward holds whole rows of some channels.
"""

import pytest
import torch

from tests.helpers.golden import (
    Case,
    Results,
    attention_of,
    check,
    make_case,
    not_numbers,
    run_backward,
    run_forward,
    run_reference,
    saved,
)
from tests.helpers.launches import slab, split, whole
from tests.helpers.layouts import channels_last, one_number, transposed, unaligned
from tests.helpers.norm_golden import GRADIENTS, NormCase, check_norm, make_norm_case, run_norm_backward

launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")
norm_launcher = pytest.importorskip("ulsam_fused.kernels.gpu.norm_backend")
geometry = pytest.importorskip("ulsam_fused.kernels.gpu.launching.geometry")


WAYS = pytest.mark.parametrize(
    ("channels_last", "lane"),
    [(False, 0), (True, 0), (True, 1), (True, 2)],
    ids=["nchw", "channels_last", "one", "two"],
)


def both(case: Case, lane: int) -> None:
    __tracebackhide__ = True
    results, z, lse = run_forward(launcher, case, config=whole(), out_dtype=case.compute_dtype)
    check(case, results)
    check(case, Results(A=attention_of(case, z, lse)))
    check(case, run_backward(launcher, case, *saved(case), config=whole(lane_channels=lane)))


@WAYS
@pytest.mark.parametrize("h", [1, 2, 3, 5, 8])
def test_sizes(h: int, channels_last: bool, lane: int, device: str) -> None:
    for w in (1, 2, 7, 8):
        if lane == 0 or (h >= 3 and w >= 2):
            both(make_case((2, 6, h, w), 2, device=device, channels_last=channels_last), lane)


@WAYS
def test_widest_tile(channels_last: bool, lane: int, device: str) -> None:
    for w in (13, 14):
        both(make_case((1, 3, 3, w), 1, device=device, channels_last=channels_last), lane)


@WAYS
@pytest.mark.parametrize("group", [1, 3, 4, 5, 9])
def test_channels_around_a_tile(group: int, channels_last: bool, lane: int, device: str) -> None:
    for relu in (False, True):
        case = make_case(
            (1, 2 * group, 3, 5), 2, device=device, relu_u=relu, relu_z=not relu, channels_last=channels_last
        )
        both(case, lane)


@pytest.mark.parametrize("lane", [1, 2])
@pytest.mark.parametrize("group", [31, 32, 33, 64, 65])
def test_channels_around_the_lanes(group: int, lane: int, device: str) -> None:
    both(make_case((1, group, 3, 2), 1, device=device, channels_last=True), lane)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype, channels_last: bool, lane: int, device: str) -> None:
    for relu in (False, True):
        case = make_case(
            (1, 6, 4, 7), 2, dtype=dtype, device=device, relu_u=relu, relu_z=relu, channels_last=channels_last
        )
        both(case, lane)


@WAYS
def test_ties_and_peaks(channels_last: bool, lane: int, device: str) -> None:
    case = make_case((2, 4, 5, 6), 2, device=device, channels_last=channels_last)
    case.x = case.x.round()
    both(case, lane)
    case.v = case.v * 50
    both(case, lane)


@WAYS
def test_scale_zero(channels_last: bool, lane: int, device: str) -> None:
    case = make_case((1, 4, 5, 4), 2, device=device, channels_last=channels_last)
    case.scale = torch.zeros_like(case.scale)
    both(case, lane)


@WAYS
@pytest.mark.parametrize("place", [(0, 0), (1, 1), (3, 0), (0, 4), (3, 4)])
def test_nan_reaches_the_sums(place: tuple[int, int], channels_last: bool, lane: int, device: str) -> None:
    """As it does in the reference: in every gradient of its channel."""
    case = make_case((1, 4, 4, 5), 2, device=device, channels_last=channels_last)
    case.x[0, 1, place[0], place[1]] = float("nan")
    _, z, lse = run_forward(launcher, case, config=whole())
    found = run_backward(launcher, case, z, lse, config=whole(lane_channels=lane))
    for gradient in (found.dscale, found.dv, found.dshift):
        assert gradient[1].isnan()
        assert not gradient[2:].isnan().any()
    assert found.dx[0, 1].isnan().all()


@WAYS
@pytest.mark.parametrize("arriving", ["dy", "d_attention"])
def test_one_gradient_alone(arriving: str, channels_last: bool, lane: int, device: str) -> None:
    case = make_case((2, 4, 3, 5), 2, device=device, channels_last=channels_last)
    setattr(case, "d_attention" if arriving == "dy" else "dy", None)
    check(case, run_backward(launcher, case, *saved(case), config=whole(lane_channels=lane)))


@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
def test_nan_and_infinity_are_where_the_reference_has_them(device: str) -> None:
    shape = (8, 2, 8, 5)
    x = not_numbers(shape, device)
    for relu in (False, True):
        case = make_case(shape, 1, device=device, relu_u=relu, relu_z=relu)
        case.x, case.v = x, case.v.abs() + 0.1
        (found, _, _), expected = run_forward(launcher, case, config=whole()), run_reference(case, torch.float64)
        torch.testing.assert_close(found.y, expected.y, equal_nan=True)
        torch.testing.assert_close(found.A, expected.A, equal_nan=True)


def test_who_takes_it() -> None:
    """Tensors that are contiguous within a slab, or dense in channels_last, in a launch that has the whole of it."""
    x = torch.empty(2, 4, 5, 6, device="meta")
    taken = {"MAP_H": 5, "MAP_W": 6, "PIXEL": 1, "BLOCK_C": 4, "BLOCK_W": 8, "EVEN_C": False}
    left = {"MAP_H": 0, "MAP_W": 0, "PIXEL": 0}
    for apart in (x, x[::2], torch.empty(2, 8, 5, 6, device="meta")[:, 4:], unaligned(x)):
        assert geometry.whole_map(whole(), 2, apart, x) == taken
    last = channels_last(x)
    assert geometry.whole_map(whole(), 1, last, last[:1]) == {**taken, "PIXEL": 4, "EVEN_C": True}
    rows = whole(lane_channels=2)
    assert geometry.whole_map(rows, 1, last) == {**taken, "PIXEL": 4, "BLOCK_C": 64}
    assert geometry.whole_map(rows, 1, x) == left
    assert geometry.whole_map(whole(), 1, channels_last(torch.empty(2, 8, 5, 6, device="meta"))[:, 4:]) == left
    wide = torch.empty(1, 2**27, 4, 5, device="meta").to(memory_format=torch.channels_last)
    assert geometry.whole_map(whole(), 1, wide) == left
    for layout in (channels_last, transposed, one_number):
        assert geometry.whole_map(whole(), 1, x, layout(x)) == left
    assert geometry.whole_map(split(), 1, x) == left
    assert geometry.whole_map(split(whole_map=True), 1, x) == left


def test_whole_tiles_of_a_march() -> None:
    """Of dense tensors in channels_last the kernel is told where pixels lie."""
    x = torch.empty(2, 4, 5, 6, device="meta")
    last = channels_last(x)
    march = {"MAP_H": 0, "MAP_W": 0, "LANE": 0}
    told = slab(block_c=2, block_w=1, strip_columns=3)
    assert geometry.backward_map(told, 2, last, last[:1]) == {**march, "PIXEL": 4}
    for config, tensors in (
        (slab(block_c=2, block_w=1, strip_columns=4), (last,)),
        (slab(block_c=4, block_w=1, strip_columns=3), (last,)),
        (told, (last, x)),
        (told, (channels_last(torch.empty(2, 8, 5, 6, device="meta"))[:, 4:],)),
        (told, (torch.empty(1, 2**27, 4, 6, device="meta").to(memory_format=torch.channels_last),)),
    ):
        assert geometry.backward_map(config, 2, *tensors) == {**march, "PIXEL": 0}
    rows = whole(lane_channels=1)
    assert geometry.backward_map(rows, 1, last) == {**geometry.whole_map(rows, 1, last), "LANE": 1}


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_others_march(lane: int, device: str) -> None:
    """A configuration for small maps, and dy that lies otherwise."""
    case = make_case((2, 4, 5, 6), 2, device=device, channels_last=True)
    case.dy = case.dy.contiguous()
    check(case, run_backward(launcher, case, *saved(case), config=whole(lane_channels=lane)))


# --- with norms on the statistics of the batch: the backward ----------------------------------------------------------


def norm_backward(case: NormCase, lane: int) -> dict[str, torch.Tensor | None]:
    __tracebackhide__ = True
    results = run_norm_backward(norm_launcher, case, config=whole(lane_channels=lane))
    check_norm(case, results, interpreted=launcher.INTERPRETED)
    return results


@WAYS
@pytest.mark.parametrize(
    ("batch1", "batch2", "dtype"),
    [(True, True, torch.float16), (True, False, torch.float32), (False, True, torch.bfloat16)],
    ids=["both", "depthwise", "pointwise"],
)
def test_norms(batch1: bool, batch2: bool, dtype: torch.dtype, channels_last: bool, lane: int, device: str) -> None:
    """5 channels, in tiles of 4 or a part of one."""
    for on in (False, True):
        case = make_norm_case(
            (1, 5, 4, 3), 1, dtype, device, batch1=batch1, batch2=batch2, parameters=torch.float32, biases=on,
            relu_u=on, relu_z=not on, channels_last=channels_last,
        )  # fmt: skip
        norm_backward(case, lane)


@WAYS
@pytest.mark.parametrize("batch1", [True, False], ids=["both", "pointwise"])
def test_norms_ties_and_signs(batch1: bool, channels_last: bool, lane: int, device: str) -> None:
    case = make_norm_case((1, 3, 5, 3), 1, torch.float32, device, batch1=batch1, channels_last=channels_last)
    case.x = torch.randint_like(case.x, 3)
    case.dw = case.dw.abs() * torch.tensor([1.0, -1.0, 0.0], device=device)
    case.beta1 = case.beta1.abs() / 16 + 0.01  # no u is exactly 0
    norm_backward(case, lane)


@WAYS
def test_norms_without_dy_and_twice(channels_last: bool, lane: int, device: str) -> None:
    case = make_norm_case((1, 2, 3, 5), 1, torch.float32, device, batch1=False, channels_last=channels_last)
    case.dy = None
    one, other = norm_backward(case, lane), norm_backward(case, lane)
    for name in GRADIENTS:
        assert one[name] is other[name] is None or torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("lane", [0, 1])
def test_norms_others_march(lane: int, device: str) -> None:
    case = make_norm_case((1, 2, 3, 5), 1, torch.float32, device, batch1=False, channels_last=True)
    case.dy = case.dy.contiguous()
    norm_backward(case, lane)
