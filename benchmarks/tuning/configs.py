"""The launch configuration that the package chooses, and alternatives that differ from it in one respect each."""

import dataclasses
from collections.abc import Iterator

from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.config import ROWS, LaunchConfig, MomentsConfig, cdiv, next_power_of_2
from ulsam_fused.kernels.gpu.launching.geometry import compared_size

from benchmarks import sizes
from ulsam_fused.console.devices import DTYPES

FORWARD, BACKWARD, NORM_FORWARD, NORM_BACKWARD = DIRECTIONS = ("forward", "backward", "norm-forward", "norm-backward")
CHOSEN = "chosen"
REGISTERS = 65536  # of an SM
LEAST_WIDTH = 8  # of a tile in NCHW: four of its columns may only serve the windows of the others


@dataclasses.dataclass(frozen=True)
class Target:
    """What is tuned: one direction at one size, type and memory format."""

    case: str
    direction: str
    dtype: str
    layout: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n, c, h, w, _ = sizes.numbers(self.case)
        return n, c, h, w

    @property
    def num_splits(self) -> int:
        return sizes.numbers(self.case)[4]

    @property
    def channels_last(self) -> bool:
        return self.layout == "channels_last"

    def __str__(self) -> str:
        return f"{self.case} {self.direction} {self.dtype} {self.layout}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """How one call is launched."""

    launch: LaunchConfig
    moments: MomentsConfig | None = None  # norm-forward: of its first launch


def chosen(target: Target, num_sms: int) -> Candidate:
    """What the package launches on a GPU with so many multiprocessors."""
    dtype = DTYPES[target.dtype]
    given = (target.shape, target.num_splits, dtype.itemsize, target.channels_last, num_sms)
    if target.direction == FORWARD:
        return Candidate(configs.forward_config(*given))
    if target.direction == NORM_FORWARD:
        moments = configs.moments_config(target.shape, dtype.itemsize, target.channels_last, num_sms)
        return Candidate(configs.norm_forward_config(*given), moments)
    return Candidate(configs.backward_config(*given, compared_size(dtype)))


def alternatives(target: Target, of: Candidate) -> dict[str, Candidate]:
    """By name, what matters most first. No two are equal, and none leaves lanes without work."""
    found: dict[str, Candidate] = {}

    def add(name: str, candidate: Candidate) -> None:
        if candidate != of and candidate not in found.values():
            found[name] = candidate

    for name, launch in _launches(of.launch, target):
        if valid(launch, of.launch, target):
            add(name, dataclasses.replace(of, launch=launch))
    if of.moments is not None:
        for name, moments in _moments(of.moments, target):
            add(f"moments: {name}", dataclasses.replace(of, moments=moments))
    if target.direction == NORM_BACKWARD:
        for name, programs in (("half", of.launch.flat_programs // 2), ("twice", of.launch.flat_programs * 2)):
            launch = dataclasses.replace(of.launch, flat_programs=programs)
            add(f"{name} the programs of flat passes", dataclasses.replace(of, launch=launch))
    return found


def valid(config: LaunchConfig, beside: LaunchConfig, target: Target) -> bool:
    """Whether every lane has an element, and no tile exceeds what it covers more than the chosen one does."""
    _, c, h, w = target.shape
    lanes = 32 * config.num_warps
    whole = next_power_of_2(c // target.num_splits)
    most = {
        "block_c": whole,
        "block_k": whole,
        "block_p": next_power_of_2(h * w),
        "block_w": next_power_of_2(cdiv(w, config.strip_columns)),
    }
    least = 1 if target.channels_last else LEAST_WIDTH
    return (
        all(getattr(config, name) <= max(size, getattr(beside, name)) for name, size in most.items())
        and min(config.block_c * config.block_w, config.block_p * config.block_k) >= lanes
        and config.block_w >= least
        and config.strip_columns <= w
        and config.block_w % config.columns == 0
        and config.split == (config.strip_rows > 0)
        and config.strip_rows % ROWS == 0
        and (config.strip_rows < h or config.strip_rows == beside.strip_rows)
        and config.max_registers * lanes <= REGISTERS
    )


def _launches(config: LaunchConfig, target: Target) -> Iterator[tuple[str, LaunchConfig]]:
    yield "slab instead of split", dataclasses.replace(config, split=False, strip_rows=0)
    for rows in (ROWS, 2 * ROWS, 4 * ROWS):
        yield f"split, strips of {rows} rows", dataclasses.replace(config, split=True, strip_rows=rows)
    run, other = ("block_k", "block_p") if target.channels_last else ("block_p", "block_k")
    for warps in (1, 2, 4, 8):  # with as much work for each lane as before
        grown = {name: getattr(config, name) * warps // config.num_warps for name in ("block_c", other)}
        if warps != config.num_warps and all(grown.values()):
            yield f"{warps} warp{'s' * (warps > 1)}", dataclasses.replace(config, num_warps=warps, **grown)
    c, w, columns = config.block_c, config.block_w, config.strip_columns
    yield "half the channels per tile", dataclasses.replace(config, block_c=c // 2)
    yield "twice the channels per tile", dataclasses.replace(config, block_c=2 * c)
    yield "tiles half as wide, twice the channels", dataclasses.replace(config, block_w=w // 2, block_c=2 * c)
    yield "tiles twice as wide, half the channels", dataclasses.replace(config, block_w=2 * w, block_c=c // 2)
    if config.columns > 1:
        yield "half the columns per lane", dataclasses.replace(config, columns=config.columns // 2)
    if columns > 1:
        yield "strips of half the columns", dataclasses.replace(config, strip_columns=cdiv(columns, 2))
        yield "strips of twice the columns", dataclasses.replace(config, strip_columns=2 * columns)
    length, count = getattr(config, run), getattr(config, other)
    yield "flat tile half", dataclasses.replace(config, **{other: count // 2})
    yield "flat tile twice", dataclasses.replace(config, **{other: 2 * count})
    yield "flat tile with runs half as long", dataclasses.replace(config, **{run: length // 2, other: 2 * count})
    yield "flat tile with runs twice as long", dataclasses.replace(config, **{run: 2 * length, other: count // 2})
    for registers in (128, 168, 255):
        yield f"{registers} registers", dataclasses.replace(config, max_registers=registers)


def _moments(config: MomentsConfig, target: Target) -> Iterator[tuple[str, MomentsConfig]]:
    n, c, h, w = target.shape
    tiles = cdiv(n * h * w, config.block_p)
    each = config.part_pixels // config.block_p  # tiles of a program

    def parted(each: int) -> MomentsConfig:
        return dataclasses.replace(config, parts=cdiv(tiles, each), part_pixels=each * config.block_p)

    if each < tiles:
        yield "half the programs", parted(2 * each)
    if each > 1:
        yield "twice the programs", parted(cdiv(each, 2))
    if config.block_p // 2 * config.block_c >= 32 * config.num_warps:
        yield "half the pixels per tile", dataclasses.replace(config, block_p=config.block_p // 2)
    if each % 2 == 0:
        yield "twice the pixels per tile", dataclasses.replace(config, block_p=2 * config.block_p)
    if config.block_p * config.block_c // 2 >= 32 * config.num_warps and config.block_c > 1:
        yield "half the channels per tile", dataclasses.replace(config, block_c=config.block_c // 2)
    if 2 * config.block_c <= next_power_of_2(c):
        yield "twice the channels per tile", dataclasses.replace(config, block_c=2 * config.block_c)
    for registers in (128, 255):
        yield f"{registers} registers", dataclasses.replace(config, max_registers=registers)
