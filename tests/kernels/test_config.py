"""Launch configurations are data, chosen by pure functions: checked over many shapes, without Triton and a GPU."""

import dataclasses
import itertools

import pytest
from ulsam_fused.kernels import config as configs
from ulsam_fused.kernels.config import LaunchConfig, backward_config, forward_config

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
    for config, (_, _, _, w), _, itemsize, *_ in all_configs(choose):
        for block in (config.block_w, config.block_c, config.block_p, config.block_k, config.num_warps):
            assert block >= 1
            assert block & (block - 1) == 0, f"Triton needs powers of two: {config}"
        assert config.num_warps in (1, 2, 4, 8)
        lanes = 32 * config.num_warps
        march, flat = config.block_c * config.block_w, config.block_p * config.block_k
        assert lanes <= march <= 16 * lanes, f"the march must fill its lanes, and its registers not overflow: {config}"
        assert lanes <= flat <= 32 * lanes, config
        assert 8 <= config.block_w <= configs.MAX_BLOCK_W
        if itemsize < 8:  # float64 has one tile for all
            assert config.block_w >= w or config.block_w == configs.MAX_BLOCK_W, "a tile spans a row, unless it is long"
            assert config.block_w < 2 * w or config.block_w <= 16, "no more than half a tile is idle"


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
    for config, (n, c, h, w), g, itemsize, channels_last, sms in all_configs(choose):
        large = c // g * h * w * itemsize > configs.SLAB_BYTES
        few = n * g < configs.PROGRAMS_PER_SM * sms
        assert config.split == (large or (few and h > configs.ROWS))
        reason = configs.regime_reason((n, c, h, w), g, itemsize, channels_last, sms)
        assert reason.startswith("split, two launches" if config.split else "slab, one launch")
        assert ("KiB" in reason) == large
        found.add((config.split, large, few))
    assert found >= {(True, True, True), (True, True, False), (True, False, True), (False, False, False)}


@pytest.mark.parametrize(
    ("shape", "num_splits", "itemsize", "split"),
    [
        ((1, 64, 56, 56), 4, 2, True),  # one image cannot fill a GPU
        ((1, 1024, 7, 7), 4, 2, False),  # but a map of one strip cannot be split
        ((256, 512, 14, 14), 4, 2, False),
        ((256, 512, 14, 14), 1, 2, True),  # 196 KiB
        ((256, 64, 112, 112), 4, 4, True),
        ((66, 4, 8, 8), 4, 4, False),  # exactly two slabs per multiprocessor
        ((65, 4, 8, 8), 4, 4, True),
        ((512, 64, 32, 32), 1, 2, False),  # exactly 128 KiB
        ((512, 65, 32, 32), 1, 2, True),
    ],
)
@CHOICES
def test_regime_of(
    shape: tuple[int, int, int, int], num_splits: int, itemsize: int, split: bool, choose: object
) -> None:
    assert choose(shape, num_splits, itemsize, False, H100).split == split


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
    [(5, 7, 16, 48), (16, 7, 16, 112), (16, 0, 16, 16), (1, 7, 64, 64), (9, 14, 2, 126), (56, 7, 32, 416)],
)
def test_chunks_are_whole_tiles_of_about_a_strip(w: int, strip_rows: int, block_p: int, pixels: int) -> None:
    config = forward_config((1, 4, 8, 8), 1, 4, False, 1)
    config = dataclasses.replace(config, strip_rows=strip_rows, block_p=block_p)
    assert configs.chunk_pixels(w, config) == pixels


def test_next_power_of_2() -> None:
    assert [configs.next_power_of_2(n) for n in (1, 2, 3, 4, 5, 63, 64, 65)] == [1, 2, 4, 4, 8, 64, 64, 128]


def test_cdiv() -> None:
    assert [configs.cdiv(a, 7) for a in (0, 1, 6, 7, 8)] == [0, 1, 1, 1, 2]
