"""The launch configurations that the package ships, each with a call that takes it."""

import dataclasses
import itertools
from typing import NamedTuple

import torch
from ulsam_fused.kernels.contract import Exchange, FixedNorm, Inputs, NormInputs, NormSaved, Options, Running
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu import norm_backend as norm_launcher
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig
from ulsam_fused.kernels.gpu.launching.geometry import compared_size

Shape = tuple[int, int, int]  # C, H, W
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
BATCH = 64
NUM_SMS = 30  # few enough for the 64 slabs of a batch to fill the GPU

# For each width of tile, a slab for one warp and one for four.
SHAPES: list[Shape] = [(20, 7, 7), (256, 7, 7), (8, 14, 14), (128, 14, 14), (2, 28, 28), (32, 28, 28)]
# For the matrix: the tile divides these channels where it does not divide those above, and the other way round.
OTHER: list[Shape] = [(32, 7, 7), (250, 7, 7), (100, 14, 14), (20, 28, 28)]
LARGE: list[Shape] = [(20, 56, 56), (32, 56, 56)]  # split in float32 and float64, for their size


class NormForward(NamedTuple):
    """A forward of the authors' form; its march is that of the forward."""

    direction: str
    dtype: str
    channels_last: bool
    shape: Shape
    split: bool


class NormBackward(NamedTuple):
    """A backward of the authors' form; its march is that of the backward."""

    dtype: str
    channels_last: bool
    shape: Shape
    both_norms: bool


NORM_FORWARD = [
    NormForward("norm_forward", "float16", False, (32, 28, 28), False),
    NormForward("norm_forward", "float32", True, (32, 28, 28), True),
    NormForward("norm_forward", "float16", True, (8, 14, 14), False),
    NormForward("norm_forward", "float32", False, (128, 14, 14), False),  # 4 divides H*W, and 16 does not
    NormForward("folded", "float16", False, (128, 14, 14), False),
    NormForward("folded", "float32", True, (32, 28, 28), True),
]
NORM_BACKWARD = [
    NormBackward("float32", False, (32, 28, 28), True),
    NormBackward("float16", True, (32, 28, 28), True),
    NormBackward("float64", False, (32, 28, 28), True),
    NormBackward("float16", False, (8, 14, 14), False),  # a tile is a whole map
    NormBackward("float32", True, (128, 14, 14), True),  # a lane holds whole rows
]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that takes one launch configuration."""

    direction: str  # "forward", "backward", "norm_forward", "folded" or "norm_backward"
    dtype: str
    channels_last: bool
    shape: Shape
    general: bool  # with biases and both ReLUs, else the paper's form; norm_backward: both norms, else the pointwise
    config: LaunchConfig

    def __str__(self) -> str:
        c, h, w = self.shape
        layout = "channels_last" if self.channels_last else "nchw"
        general, other = ("both", "pointwise") if self.direction == "norm_backward" else ("general", "paper")
        return f"{self.direction} {self.dtype} {layout} {c}x{h}x{w} {general if self.general else other}"

    def make(self) -> None:
        """Launches it, on tensors without storage."""
        dtype = DTYPES[self.dtype]
        c, h, w = self.shape
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.empty((BATCH, c, h, w), dtype=dtype, device="meta").to(memory_format=layout)
        p = torch.empty(c, dtype=torch.promote_types(dtype, torch.float32), device="meta")
        k, z, lse = p[:1], p.new_empty((BATCH, 1, h, w)), p.new_empty((BATCH, 1))
        shift, b = (p, k) if self.general else (None, None)
        config, options = self.config, Options(1, self.general, self.general)
        norm_options = Options(1, True, True, eps1=1e-5, eps2=1e-5)
        if self.direction == "forward":
            launcher.forward(Inputs(x, p, shift, p, b), options, config=config)
        elif self.direction == "backward":
            launcher.backward(x, None, Inputs(x, p, shift, p, b), z, lse, options, config=config)
        elif self.direction == "norm_forward":
            exchange = Exchange(Running(p, p, p, 0.1), Running(p, p, p, 0.1))
            norm_launcher.norm_forward(NormInputs(x, p, p, p, p, k, k), norm_options, exchange, config=config)
        elif self.direction == "folded":
            first, second = FixedNorm(p, p, p, p, 1e-5), FixedNorm(k, k, k, k, 1e-5)
            norm_launcher.folded_forward(x, p, p, first, p, k, second, norm_options, config=config)
        else:
            gamma1, saved = p if self.general else None, NormSaved(z, lse, p.new_empty((5, c)), p.new_empty((6, 1)))
            inputs = NormInputs(x, p, gamma1, p, p, k, k)
            norm_launcher.norm_backward(x, None, inputs, saved, norm_options, config=config)


def shipped(matrix: bool = False) -> list[Call]:
    """A call for every distinct configuration, in the type that needs most registers; matrix: every type and form."""
    calls: dict[object, Call] = {}
    shapes = SHAPES + (OTHER + LARGE) * matrix
    for direction, dtype, channels_last, shape, general, split in itertools.product(
        ("forward", "backward"), DTYPES, (False, True), shapes, (False, True), (False, True)
    ):
        chosen = _chosen(direction, dtype, channels_last, BATCH, shape)
        # Slabs and strips share a tile. One tall shape is enough to see strips; the matrix sees all of them.
        tall = shape[1] > configs.ROWS and (matrix or shape == SHAPES[-1])
        if split != chosen.split and not (split and tall):
            continue
        call = Call(direction, dtype, channels_last, shape, general, _with_strips(chosen, split))
        # the type that needs most registers stands for all; either direction is seen in 16 and in 32 bits
        wanted = ("float16", "float32") if direction == "forward" else ("float32", "float16")
        tile = _with_strips(chosen, False)
        key = call if matrix else (direction, channels_last, tile)
        if key not in calls or (call.dtype == wanted[channels_last] and call.general):
            calls[key] = call
    one_image = [  # too few slabs to fill the GPU, but each too small to be split
        Call("forward", dtype, channels_last, (128, 14, 14), True, config)
        for dtype, channels_last in (("float16", False), ("float16", True))
        for config in [_chosen("forward", dtype, channels_last, 1, (128, 14, 14))]
    ]
    return [*calls.values(), *one_image, *_norm_forward(matrix), *_norm_backward(matrix)]


def _with_strips(config: LaunchConfig, split: bool) -> LaunchConfig:
    return dataclasses.replace(config, split=split, strip_rows=configs.ROWS if split else 0)


def _chosen(direction: str, dtype: str, channels_last: bool, batch: int, shape: Shape) -> LaunchConfig:
    whole, itemsize = (batch, *shape), DTYPES[dtype].itemsize
    if direction in ("forward", "folded"):
        return configs.forward_config(whole, 1, itemsize, channels_last, NUM_SMS)
    if direction == "norm_forward":
        return configs.norm_forward_config(whole, 1, itemsize, channels_last, NUM_SMS)
    return configs.backward_config(whole, 1, itemsize, channels_last, NUM_SMS, compared_size(DTYPES[dtype]))


def _norm_forward(matrix: bool) -> list[Call]:
    every = itertools.product(("norm_forward", "folded"), DTYPES, (False, True), SHAPES + OTHER + LARGE, (False, True))
    calls = []
    for direction, dtype, channels_last, shape, split in every if matrix else NORM_FORWARD:
        config = _with_strips(_chosen(direction, dtype, channels_last, BATCH, shape), split)
        calls.append(Call(direction, dtype, channels_last, shape, True, config))
    return calls


def _norm_backward(matrix: bool) -> list[Call]:
    every = itertools.product(DTYPES, (False, True), SHAPES + OTHER, (False, True))
    calls = []
    for dtype, channels_last, shape, both_norms in every if matrix else NORM_BACKWARD:
        config = _chosen("norm_backward", dtype, channels_last, BATCH, shape)
        calls.append(Call("norm_backward", dtype, channels_last, shape, both_norms, config))
    return calls
