"""How the tensors of a call lie in memory, how its configuration cuts them, and what kernels are told of both.

Names in capitals are constants of kernels, which say what they mean.
"""

import contextlib
import dataclasses
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .config import (
    MIN_BLOCK_W,
    LaunchConfig,
    border_columns,
    border_pitch,
    cdiv,
    chunk_pixels,
    halo_columns,
    next_power_of_2,
)


class Access(NamedTuple):
    """How pixels of some tensors are reached."""

    flat: bool  # FLAT: in each of them one stride serves all pixels of a map
    vec: int  # VEC: divides strides, and H*W, or in channels_last the channels of a subspace


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Of a call: x [N, C, H, W] in num_splits subspaces, cut as the configuration says."""

    n: int
    c: int
    h: int
    w: int
    num_splits: int
    channels_last: bool
    wide: bool  # WIDE: offsets inside an image need int64, in one of the call's tensors
    config: LaunchConfig
    chunk: int  # pixels per program of a launch that sweeps over pixels; not used in the slab regime

    @property
    def group(self) -> int:
        """G: channels of a subspace."""
        return self.c // self.num_splits

    @property
    def slabs(self) -> int:
        return self.n * self.num_splits

    @property
    def strip_rows(self) -> int:
        """Rows per program of a launch that marches over rows."""
        return self.config.strip_rows or self.h

    @property
    def strips(self) -> int:
        return cdiv(self.h, self.strip_rows) if self.config.split else 1

    @property
    def chunks(self) -> int:
        return cdiv(self.h * self.w, self.chunk)

    @property
    def pitch(self) -> int:
        """Columns of A and dl with a border, in the backward."""
        return border_pitch(self.w, self.config, self.channels_last)

    def access(self, *tensors: Tensor) -> Access:
        """To tensors that a launch reaches by the same offsets or with the same width."""
        flat = all(map(is_flat, tensors))
        return Access(flat, vector_width(self.channels_last, self.group, *tensors) if flat else 1)


def geometry_of(
    num_splits: int,
    config: LaunchConfig,
    x: Tensor,
    *others: Tensor,
    chunk: int | None = None,  # None: about a strip
) -> Geometry:
    """Of a call with x and other tensors of its shape."""
    n, c, h, w = x.shape
    return Geometry(
        n, c, h, w, num_splits,
        channels_last=is_channels_last(x),
        wide=any(map(is_wide, (x, *others))),
        config=config,
        chunk=chunk_pixels(w, config) if chunk is None else chunk,
    )  # fmt: skip


def march_tile(geometry: Geometry) -> dict[str, int]:
    """The tile of a march over rows."""
    config = geometry.config
    return {"BLOCK_C": config.block_c, "BLOCK_W": config.block_w, "EVEN_C": geometry.group % config.block_c == 0}


def backward_march_tile(geometry: Geometry) -> dict[str, int]:
    """The tile of the backward's march, COLUMNS being those of a strip."""
    config = geometry.config
    halo = halo_columns(geometry.w, config, geometry.channels_last)
    return {
        **march_tile(geometry),
        "COLUMNS": config.strip_columns if geometry.channels_last else config.columns,
        "HALO": halo,
        "LEFT": border_columns(halo, geometry.channels_last),
    }


def with_runs(config: LaunchConfig, *tensors: Tensor) -> LaunchConfig:
    """The backward's configuration for x and others that lie so.

    In NCHW the columns of a lane are contiguous, and divide rows and the strides between them; a warp holds a row of a
    tile, of which HALO leaves something to be written.
    """
    if is_channels_last(tensors[0]):
        return config
    w, columns, width = tensors[0].shape[3], config.columns, config.block_w
    while columns > 1 and (
        any(t.stride(3) != 1 or any(stride % columns for stride in t.stride()[:3]) for t in tensors)
        or w % columns
        or (width < w and width <= 2 * columns)
    ):
        columns //= 2
    block_w = min(width, 32 * columns)
    return dataclasses.replace(config, columns=columns, block_w=block_w, block_c=config.block_c * width // block_w)


def sweep_tile(config: LaunchConfig) -> dict[str, int]:
    """The tile of a sweep over pixels."""
    return {"BLOCK_P": config.block_p, "BLOCK_K": config.block_k}


def compared_size(dtype: torch.dtype) -> int:
    """Bytes in which values of x are compared: bfloat16 in float32, to which its maximum is promoted anyway."""
    return 4 if dtype == torch.bfloat16 else dtype.itemsize


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel are contiguous, and its neighbours are not."""
    return x.stride(1) == 1 and x.stride(3) != 1


def is_flat(x: Tensor) -> bool:
    """Whether one stride serves all pixels of a map."""
    return x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def is_wide(x: Tensor) -> bool:
    """Whether offsets inside one image need int64."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 2**31


def vector_width(channels_last: bool, group: int, *tensors: Tensor) -> int:
    """The largest power of two, 16 bytes at most, that divides the lengths and strides between contiguous runs."""
    width = 16 // min(t.element_size() for t in tensors)
    for t in tensors:
        lengths = (group, t.stride(0), t.stride(3)) if channels_last else (t.shape[2] * t.shape[3], *t.stride()[:2])
        while any(length % width for length in lengths):
            width //= 2
    return width


def runs(x: Tensor, config: LaunchConfig) -> dict[str, int | bool]:
    """COLUMNS, the neighbouring columns of NCHW that one lane of the march holds, and SPAN, whether a warp has all."""
    columns = config.columns
    while x.shape[3] % columns or x.stride(2) % columns:
        columns //= 2
    span = x.stride(3) == 1 and x.shape[3] <= config.block_w <= 32 * columns
    return {"COLUMNS": columns if span else 1, "SPAN": span}


def whole_map(config: LaunchConfig, num_splits: int, *tensors: Tensor) -> dict[str, int]:
    """MAP_H and MAP_W: the size of a map, if its rows are written out and these tensors lie as that needs; or 0.

    They are contiguous within a slab, or dense in channels_last: PIXEL elements lie from a pixel to the next. The tile
    is another than that of a march.
    """
    _, c, h, w = tensors[0].shape
    ways = {c: (1, w * c, c)} if config.lane_channels else {1: (h * w, w, 1), c: (1, w * c, c)}
    pixels = [pixel for pixel, strides in ways.items() if all(t.stride()[1:] == strides for t in tensors)]
    untranslated = config.lane_channels > 0 and torch.version.hip is not None  # by Triton 3.7.1's compiler for AMD
    if not config.whole_map or config.split or not pixels or untranslated or any(map(is_wide, tensors)):
        return {"MAP_H": 0, "MAP_W": 0, "PIXEL": 0}
    lanes, block_w = 32 * config.num_warps, max(next_power_of_2(w), MIN_BLOCK_W)
    block_c = lanes * config.lane_channels or lanes // block_w
    tile = {"BLOCK_C": block_c, "BLOCK_W": block_w, "EVEN_C": c // num_splits % block_c == 0}
    return {**tile, "MAP_H": h, "MAP_W": w, "PIXEL": pixels[0]}


def backward_map(config: LaunchConfig, num_splits: int, *tensors: Tensor) -> dict[str, int]:
    """Likewise, and LANE; PIXEL also where a march in channels_last has whole tiles of dense tensors."""
    _, c, _, w = tensors[0].shape
    tile = whole_map(config, num_splits, *tensors)
    if tile["MAP_H"]:
        return {**tile, "LANE": config.lane_channels}
    dense = all(t.stride()[1:] == (1, w * c, c) for t in tensors) and not any(map(is_wide, tensors))
    whole = w % (config.block_w * config.strip_columns) == 0 and c // num_splits % config.block_c == 0
    return {**tile, "LANE": 0, "PIXEL": c if dense and whole else 0}


def run_cycle(group: int, x: Tensor, y: Tensor, config: LaunchConfig) -> dict[str, int]:
    """RUN, elements of at most 16 bytes, and CYCLE, channels after which runs begin at the same pixels; 1 if no use."""
    pixels = x.shape[2] * x.shape[3]
    lies = all(t.stride()[1:] == (pixels, t.shape[3], 1) for t in (x, y))
    run = 16 // min(x.element_size(), y.element_size()) if lies and not config.split else 1
    cycle = run // math.gcd(run, pixels)
    while group % cycle or x.stride(0) % run or y.stride(0) % run:
        run //= 2
        cycle = run // math.gcd(run, pixels)
    return {"CYCLE": cycle, "RUN": run} if cycle > 1 else {"CYCLE": 1, "RUN": 1}


CPU_SMS = 1
"""Multiprocessors that launches on a CPU are planned for: the interpreter's programs run one after the other."""


def num_sms(device: torch.device) -> int:
    """Multiprocessors of the GPU."""
    return _gpu_sms(device) if device.type == "cuda" else CPU_SMS


@functools.lru_cache
def _gpu_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which kernels for x are launched: the process may have another GPU selected."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return _NOTHING


_NOTHING = contextlib.nullcontext()


Allocation = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides, as `new_empty_strided` takes them: with a shape alone `new_empty` takes half as long again."""


def contiguous(*shape: int) -> Allocation:
    """Of a contiguous tensor."""
    return shape, torch.empty(shape, device="meta").stride()


def meta(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that lies so, without storage."""
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def map_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which kernels compute, and write logits and maps, for x of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32
