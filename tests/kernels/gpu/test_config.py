"""Launch configurations are data, chosen by pure functions: checked over many shapes, without Triton and a GPU."""

import dataclasses
import itertools

import pytest
import torch
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig, backward_config, forward_config
from ulsam_fused.kernels.gpu.launching.geometry import is_channels_last, run_cycle, runs, with_runs

H100 = 132  # multiprocessors
SHAPES = [  # shape, num_splits
    ((n, group * g, h, w), g)
    for n, group, g, (h, w) in itertools.product(
        (1, 8, 256),
        (1, 3, 4, 16, 100, 256),
        (1, 4, 7),
        ((1, 1), (1, 200), (7, 7), (8, 7), (14, 14), (28, 28), (33, 17), (56, 56), (112, 112), (264, 264), (200, 1)),
    )
]
CHOICES = pytest.mark.parametrize("choose", [forward_config, backward_config])


def all_configs(choose: object) -> list[tuple[LaunchConfig, tuple[int, int, int, int], int, int, bool, int]]:
    return [
        (choose(shape, g, itemsize, channels_last, sms), shape, g, itemsize, channels_last, sms)
        for (shape, g), itemsize, channels_last, sms in itertools.product(SHAPES, (2, 4, 8), (False, True), (1, H100))
    ]


@CHOICES
def test_tiles(choose: object) -> None:
    for config, (_, _, _, w), _, itemsize, channels_last, _ in all_configs(choose):
        for block in (config.block_w, config.block_c, config.block_p, config.block_k, config.num_warps):
            assert block >= 1
            assert block & (block - 1) == 0, f"Triton needs powers of two: {config}"
        assert config.num_warps in (1, 2, 4, 8)
        lanes = 32 * config.num_warps
        march, flat = config.block_c * config.block_w, config.block_p * config.block_k
        assert lanes <= march <= 16 * lanes, f"the march must fill its lanes, and its registers not overflow: {config}"
        assert lanes <= flat <= 32 * lanes, config
        if choose is backward_config and channels_last:
            continue
        assert config.strip_columns == 1
        assert configs.MIN_BLOCK_W <= config.block_w <= 32 * max(config.columns, configs.MAX_BLOCK_W // 32)
        assert w % config.columns == 0
        assert lanes * config.columns <= march, "no two lanes hold the same columns"
        if itemsize < 8:  # float64 has one tile for all
            longest = 32 * config.columns if choose is backward_config else configs.MAX_BLOCK_W
            assert config.block_w >= w or config.block_w == longest, "a tile spans a row, unless it is long"
            assert config.block_w >= w or w > 32 * config.columns, "which a warp cannot span"
            assert config.block_w < 2 * w or config.block_w <= 16, "no more than half a tile is idle"


@pytest.mark.parametrize("compared", [None, 4], ids=["own", "float32"])
def test_tiles_of_columns(compared: int | None) -> None:
    """Columns fit registers; tiles do not overshoot the row by much, and MobileNet's rows by an eighth at most."""
    for (shape, g), itemsize in itertools.product(SHAPES, (2, 4)):
        config = backward_config(shape, g, itemsize, True, H100, compared)
        w = shape[3]
        per_lane = config.block_c * config.block_w / (32 * config.num_warps)
        assert 1 <= per_lane <= (2 if itemsize == 2 else 1)
        whole_row = (config.block_w, config.strip_columns) == (1, w)
        assert per_lane * config.strip_columns <= (14 if whole_row and (compared or itemsize) == 2 else 8)
        width = config.block_w * config.strip_columns
        spanned = configs.cdiv(w, width) * width
        assert spanned <= w * 3 / 2 + 4
        if w in (7, 14, 28, 56, 112):
            assert spanned <= w * 8 / 7


@pytest.mark.parametrize(
    ("w", "changes", "channels_last", "halo", "pitch"),
    [
        (7, {"block_w": 1, "strip_columns": 7}, True, 0, 9),
        (8, {"block_w": 1, "strip_columns": 7}, True, 2, 16),
        (14, {"block_w": 2, "strip_columns": 7}, True, 2, 16),
        (8, {"block_w": 8, "strip_columns": 1}, True, 2, 10),
        (1, {"block_w": 1, "strip_columns": 1}, True, 0, 3),
        (8, {"block_w": 8, "columns": 1}, False, 0, 8),
        (9, {"block_w": 8, "columns": 1}, False, 2, 16),
        (10, {"block_w": 8, "columns": 2}, False, 2, 16),
        (56, {"block_w": 64, "columns": 4}, False, 0, 64),
        (132, {"block_w": 128, "columns": 4}, False, 4, 248),
    ],
)
def test_what_a_march_knows_beside_its_tile(
    w: int, changes: dict[str, int], channels_last: bool, halo: int, pitch: int
) -> None:
    config = dataclasses.replace(backward_config((1, 4, 8, 8), 1, 4, channels_last, 1), **changes)
    assert configs.halo_columns(w, config, channels_last) == halo
    assert configs.border_pitch(w, config, channels_last) == pitch


@pytest.mark.parametrize(
    ("shape", "strides", "columns", "span"),
    [
        ((1, 2, 3, 7), None, 1, True),
        ((1, 2, 3, 14), None, 2, True),
        ((1, 2, 3, 28), None, 4, True),
        ((1, 2, 3, 112), None, 4, True),
        ((1, 2, 3, 128), None, 4, True),
        ((1, 2, 3, 132), None, 1, False),
        ((1, 2, 3, 31), None, 1, True),
        ((1, 2, 3, 33), None, 1, False),
        ((1, 2, 3, 64), None, 4, True),
        ((1, 2, 3, 66), None, 1, False),  # more runs of two than a warp has lanes
        ((1, 2, 3, 28), (180, 90, 30, 1), 2, True),  # rows of 28 columns, 30 apart
        ((1, 2, 3, 28), (174, 87, 29, 1), 1, True),
        ((1, 2, 3, 56), (342, 171, 57, 1), 1, False),
        ((1, 2, 3, 28), (168, 84, 1, 3), 1, False),
        ((1, 2, 3, 28), (168, 1, 56, 2), 1, False),  # channels_last
    ],
)
def test_runs_of_columns(
    shape: tuple[int, int, int, int], strides: tuple[int, ...] | None, columns: int, span: bool
) -> None:
    """Runs divide rows and the strides between them, and the lanes of a warp hold a whole row, or there are none."""
    x = torch.empty(shape, device="meta") if strides is None else torch.empty_strided(shape, strides, device="meta")
    config = configs.norm_forward_config(shape, 1, 2, is_channels_last(x), H100)
    assert runs(x, config) == {"COLUMNS": columns, "SPAN": span}


@pytest.mark.parametrize(
    ("shape", "strides", "tile"),
    [
        ((1, 2, 3, 56), None, (4, 64, 2)),
        ((1, 2, 3, 56), (368, 184, 61, 1), (1, 32, 4)),  # rows are an odd number apart
        ((1, 2, 3, 56), (372, 186, 62, 1), (2, 64, 2)),
        ((1, 2, 3, 56), (372, 186, 60, 1), (2, 64, 2)),  # rows are multiples of four apart, channels are not
        ((1, 2, 3, 56), (366, 180, 60, 1), (2, 64, 2)),  # images are not
        ((1, 2, 3, 56), (672, 336, 112, 2), (1, 32, 4)),
        ((1, 2, 3, 54), None, (2, 64, 2)),
        ((1, 2, 3, 56), (336, 1, 112, 2), (4, 64, 2)),  # channels_last: runs are no matter
    ],
)
def test_runs_of_columns_in_the_backward(
    shape: tuple[int, int, int, int], strides: tuple[int, ...] | None, tile: tuple[int, int, int]
) -> None:
    """As above, of three tensors; with shorter runs a warp spans fewer columns, and as many elements."""
    config = dataclasses.replace(backward_config((9, 4, 56, 56), 1, 2, False, 1), columns=4, block_w=64, block_c=2)
    plain = torch.empty(shape, device="meta")
    x = plain if strides is None else torch.empty_strided(shape, strides, device="meta")
    for tensors in ((x, plain, plain), (plain, x, plain), (plain, plain, x)):
        if not is_channels_last(x) or tensors[0] is x:
            found = with_runs(config, *tensors)
            assert (found.columns, found.block_w, found.block_c) == tile
    narrow = with_runs(dataclasses.replace(config, block_w=8), plain, plain, plain)
    assert narrow.block_w > 2 * configs.halo_columns(shape[3], narrow, False), "something is left to be written"


@pytest.mark.parametrize(
    ("group", "w", "block_c"), [(16, 7, 16), (20, 7, 8), (32, 7, 16), (8, 7, 8), (1, 7, 4), (3, 14, 4), (1, 28, 4)]
)
def test_few_channels_are_idle(group: int, w: int, block_c: int) -> None:
    config = configs.norm_forward_config((64, group * 4, 7, w), 4, 2, False, H100)
    assert (config.num_warps, config.block_c) == (1, block_c)


@pytest.mark.parametrize(
    ("dtype", "group", "h", "w", "cycle"),
    [
        (torch.float16, 32, 7, 7, 8),
        (torch.float16, 20, 7, 7, 4),  # 8 does not divide 20: runs of 8 bytes
        (torch.float16, 3, 7, 7, 1),
        (torch.float16, 20, 14, 14, 2),
        (torch.float16, 20, 28, 28, 1),  # every channel is whole runs
        (torch.float32, 20, 7, 7, 4),
        (torch.float32, 20, 14, 14, 1),
        (torch.float32, 20, 3, 6, 2),
    ],
)
def test_cycle_of_runs(dtype: torch.dtype, group: int, h: int, w: int, cycle: int) -> None:
    x = torch.empty((3, 2 * group, h, w), dtype=dtype, device="meta")
    config = dataclasses.replace(forward_config(x.shape, 2, dtype.itemsize, False, H100), split=False)
    run = 1 if cycle == 1 else 4 if group == 20 and h == 7 else 16 // dtype.itemsize
    assert run_cycle(group, x, x, config) == {"CYCLE": cycle, "RUN": run}
    apart = torch.empty_strided(x.shape, (2 * group * (h * w + 8), h * w + 8, w, 1), dtype=dtype, device="meta")
    last = x.to(memory_format=torch.channels_last)
    for y, other in ((apart, config), (last, config), (x, dataclasses.replace(config, split=True, strip_rows=7))):
        assert run_cycle(group, x, y, other) == {"CYCLE": 1, "RUN": 1}


@CHOICES
def test_strips(choose: object) -> None:
    for config, *_ in all_configs(choose):
        if config.split:
            assert config.strip_rows >= configs.ROWS
            assert config.strip_rows % configs.ROWS == 0
        else:
            assert config.strip_rows == 0


@CHOICES
def test_regimes(choose: object) -> None:
    found = set()
    for config, (n, c, h, w), g, itemsize, _, sms in all_configs(choose):
        slab = c // g * h * w * itemsize
        large = slab > configs.SLAB_BYTES
        few = n * g < configs.PROGRAMS_PER_SM * sms and h > configs.ROWS
        one = choose is forward_config and slab <= configs.ONE_LAUNCH_BYTES
        assert config.split == (large or (few and not one))
        if few and one and itemsize < 8:
            assert config.num_warps == 8, "one program has a slab's whole work to itself"
        reason = configs.regime_reason(config, (n, c, h, w), g, itemsize, sms)
        assert reason.startswith("split, two launches" if config.split else "slab, one launch")
        assert ("a slab has" in reason) == large
        assert ("fewer than" in reason) == (few and not large)
        found.add((config.split, large, few))
    assert found >= {(True, True, True), (True, True, False), (True, False, True), (False, False, False)}
    assert ((False, False, True) in found) == (choose is forward_config)


@pytest.mark.parametrize(
    ("shape", "num_splits", "itemsize", "forward", "backward"),
    [
        ((1, 64, 56, 56), 4, 2, True, True),  # one image cannot fill a GPU
        ((1, 512, 14, 14), 4, 2, False, True),  # but a small slab is not worth a second launch of the forward
        ((1, 1024, 7, 7), 4, 2, False, False),  # a map of one strip cannot be split
        ((256, 512, 14, 14), 4, 2, False, False),
        ((256, 512, 14, 14), 1, 2, True, True),  # 196 KiB
        ((256, 64, 112, 112), 4, 4, True, True),
        ((66, 4, 8, 8), 4, 4, False, False),  # exactly two slabs per multiprocessor
        ((65, 4, 8, 8), 4, 4, False, True),
        ((65, 128, 32, 32), 4, 2, False, True),  # exactly 64 KiB
        ((65, 132, 32, 32), 4, 2, True, True),
        ((512, 64, 32, 32), 1, 2, False, False),  # exactly 128 KiB
        ((512, 65, 32, 32), 1, 2, True, True),
    ],
)
def test_regime_of(
    shape: tuple[int, int, int, int], num_splits: int, itemsize: int, forward: bool, backward: bool
) -> None:
    assert forward_config(shape, num_splits, itemsize, False, H100).split == forward
    assert backward_config(shape, num_splits, itemsize, False, H100).split == backward


@CHOICES
def test_configurations_are_values(choose: object) -> None:
    one, two = (choose((8, 64, 28, 28), 4, 2, True, H100) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert eval(repr(one), {"LaunchConfig": LaunchConfig}) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.block_w = 1


@pytest.mark.parametrize(
    ("w", "strip_rows", "block_p", "pixels"),
    [(5, 7, 16, 48), (16, 7, 16, 112), (16, 0, 16, 16), (1, 7, 64, 64), (9, 14, 2, 64), (56, 7, 32, 416)],
)
def test_chunks_are_whole_tiles_of_about_seven_rows(w: int, strip_rows: int, block_p: int, pixels: int) -> None:
    config = forward_config((1, 4, 8, 8), 1, 4, False, 1)
    config = dataclasses.replace(config, strip_rows=strip_rows, block_p=block_p)
    assert configs.chunk_pixels(w, config) == pixels


def test_next_power_of_2() -> None:
    assert [configs.next_power_of_2(n) for n in (1, 2, 3, 4, 5, 63, 64, 65)] == [1, 2, 4, 4, 8, 64, 64, 128]


def test_cdiv() -> None:
    assert [configs.cdiv(a, 7) for a in (0, 1, 6, 7, 8)] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize(("itemsize", "channels_last"), [(2, False), (2, True), (4, False), (8, True)])
def test_parts_of_the_moments(itemsize: int, channels_last: bool) -> None:
    """Every pixel is in one part, no part is empty, and there are few parts, of tiles that fit into registers."""
    for (n, c, h, w), _ in SHAPES:
        config = configs.moments_config((n, c, h, w), itemsize, channels_last, H100)
        blocks = configs.cdiv(c, config.block_c)
        for block in (config.block_c, config.block_p):
            assert block & (block - 1) == 0, f"Triton needs powers of two: {config}"
        assert config.block_c * config.block_p * itemsize <= 64 * 32 * config.num_warps
        assert config.part_pixels % config.block_p == 0
        assert (config.parts - 1) * config.part_pixels < n * h * w <= config.parts * config.part_pixels
        assert config.parts == 1 or config.parts * blocks <= configs.MOMENTS_PROGRAMS_PER_SM * H100
        if n * h * w * c >= 2**24:
            assert config.parts * blocks >= H100, "the GPU is busy"


@pytest.mark.parametrize(
    ("shape", "g", "forward", "backward", "lane"),
    [
        ((64, 160, 7, 7), 8, True, True, 0),
        ((256, 1024, 7, 7), 4, False, True, 1),  # several warps: the march wastes little
        ((256, 512, 14, 14), 4, False, True, 1),
        ((256, 256, 7, 7), 8, True, True, 1),
        ((4, 512, 14, 14), 4, False, False, 0),  # so few slabs that they are split
        ((256, 512, 15, 15), 4, False, False, 0),
    ],
)
def test_whole_maps(shape: tuple[int, int, int, int], g: int, forward: bool, backward: bool, lane: int) -> None:
    """In NCHW tiles are maps; in channels_last, too, where lanes would be idle, else a lane has whole rows."""
    for channels_last, itemsize in itertools.product((False, True), (2, 4, 8)):
        given = shape, g, itemsize, channels_last, H100
        can = itemsize < 8
        assert forward_config(*given).whole_map == (forward and can)
        config = backward_config(*given)
        assert config.whole_map == (backward and can)
        assert config.lane_channels == (min(lane, 4 // itemsize) if channels_last and can else 0)


@pytest.mark.parametrize(
    ("group", "h", "w", "compared", "whole", "lane"),
    [
        (20, 7, 7, 2, True, 0),
        (31, 7, 7, 2, True, 0),
        (32, 7, 2, 2, True, 1),
        (32, 7, 1, 2, True, 0),
        (32, 2, 7, 2, True, 0),
        (32, 3, 7, 2, True, 1),
        (128, 8, 8, 2, True, 1),
        (128, 9, 9, 2, False, 0),  # its rows are no turns of three
        (256, 14, 6, 2, True, 2),
        (256, 14, 6, 4, True, 1),  # bfloat16
        (256, 14, 7, 2, True, 1),
        (384, 7, 7, 2, True, 1),
        (250, 7, 7, 2, False, 0),  # some lanes would be idle
        (64, 14, 14, 2, False, 0),
    ],
)
def test_whole_rows(group: int, h: int, w: int, compared: int, whole: bool, lane: int) -> None:
    config = backward_config((256, 2 * group, h, w), 2, 2, True, 1, compared)
    assert (config.whole_map, config.lane_channels) == (whole, lane)


def test_strips_with_batch_norm() -> None:
    """A slab that is large is not split, one of few is: into strips that fill the GPU."""
    for (n, c, h, w), g in SHAPES:
        config = configs.norm_forward_config((n, c, h, w), g, 2, False, H100)
        general = forward_config((2 * H100, c, h, w), g, 2, False, H100)
        if general.whole_map:  # which has no place for statistics between logits and softmax
            continue
        assert config.split == (n * g < configs.PROGRAMS_PER_SM * H100 and h > configs.ROWS)
        assert dataclasses.replace(config, split=general.split, strip_rows=general.strip_rows) == general
        assert (config.strip_rows > 0) == config.split
        assert config.strip_rows % configs.ROWS == 0
        if config.split and config.strip_rows > configs.ROWS:
            programs = n * g * configs.cdiv(h, config.strip_rows)
            assert programs >= configs.NORM_PROGRAMS_PER_SM * H100


@pytest.mark.parametrize(("group", "num_warps"), [(1, 1), (3, 4), (16, 1), (200, 4), (1000, 1)])
def test_tile_of_partial_moments(group: int, num_warps: int) -> None:
    channels, parts = configs.combine_blocks(group, num_warps)
    assert channels * parts == 256 * num_warps
    assert channels >= min(group, 128)
    assert channels & (channels - 1) == 0
