"""The table that `check` works through: sizes, types, memory formats, maps and activations."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _names
from ..console.devices import DTYPES
from .operator_accuracy import Problem

Shape = tuple[int, int, int, int, int]  # N, C, H, W, num_splits

TINY: tuple[Shape, ...] = ((2, 6, 7, 7, 2), (1, 3, 1, 1, 3), (2, 4, 5, 9, 1), (1, 10, 1, 6, 5))
SMALL: tuple[Shape, ...] = ((2, 16, 14, 14, 4), (2, 12, 28, 28, 3), (1, 34, 17, 15, 2), (3, 64, 8, 8, 1))
PLACEMENTS: tuple[Shape, ...] = ((2, 512, 14, 14, 4), (2, 1024, 7, 7, 4), (2, 160, 7, 7, 8), (1, 32, 112, 112, 4))
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "nchw": "nchw", "channels_last": "nhwc"}
STYLES = (("random", None), ("peaked", None), ("random", "relu"), ("peaked", "relu"))  # maps, activation
LAYOUTS = dict(zip(_names.LAYOUTS, (torch.contiguous_format, torch.channels_last), strict=True))


@dataclass(frozen=True)
class Case:
    """One row. Maps: "random", nearly uniform as initialised; "peaked", weights 8 times larger; "ties", integers."""

    shape: Shape
    dtype: str
    layout: str
    maps: str
    activation: str | None
    wide_parameters: bool = False  # float32 beside a 16-bit x

    def __str__(self) -> str:
        n, c, h, w, g = self.shape
        dtype = SHORT[self.dtype] + ("+fp32" if self.wide_parameters else "")
        size, activation = f"{n}x{c}x{h}x{w}/g{g}", self.activation or "-"
        return f"{size:<17} {dtype:<9} {SHORT[self.layout]:<6} {self.maps:<6} {activation:<4}"

    def problem(self, device: torch.device) -> Problem:
        """The tensors of this row, with the same numbers on every machine."""
        n, c, h, w, g = self.shape
        dtype = DTYPES[self.dtype]
        parameter_dtype = torch.float32 if self.wide_parameters else dtype
        generator = torch.Generator().manual_seed(2006_15102)

        def uniform(length: int, bound: float) -> Tensor:
            return ((2 * torch.rand(length, generator=generator) - 1) * bound).to(device, parameter_dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        def feature_map(values: Tensor) -> Tensor:
            return values.to(device, dtype).contiguous(memory_format=LAYOUTS[self.layout])

        bound = (g / c) ** 0.5  # PyTorch's initialisation: 1 / sqrt(G)
        scale = uniform(c, 1.0)
        v = uniform(c, bound if self.maps == "random" else 8 * bound)
        if self.maps == "ties":  # few integers and weights of -1, 0 and 1: most windows have several maxima
            x = feature_map(torch.randint(-2, 3, (n, c, h, w), generator=generator).float())
            scale = (torch.arange(c, device=device) % 3 - 1).to(parameter_dtype)
        else:
            x = feature_map(normal(n, c, h, w))
        return Problem(
            x=x,
            scale=scale,
            shift=uniform(c, 1.0),
            v=v,
            b=uniform(g, bound),
            num_splits=g,
            activation=self.activation,
            dy=feature_map(normal(n, c, h, w)),
            d_attention=normal(n, g, h, w).to(torch.promote_types(dtype, torch.float32)),
        )


def full() -> Iterator[Case]:
    """Every size in every type, format and style."""
    for shape in TINY + SMALL + PLACEMENTS:
        for dtype, layout, (maps, activation) in itertools.product(DTYPES, LAYOUTS, STYLES):
            yield Case(shape, dtype, layout, maps, activation)
    yield from _special(SMALL)


def usual() -> Iterator[Case]:
    """Every size in every type, formats and styles by turns."""
    yield from _by_turns(TINY + SMALL + PLACEMENTS)
    yield from _special(SMALL)


def quick() -> Iterator[Case]:
    """As `usual`, without the largest sizes."""
    yield from _by_turns(TINY + SMALL + PLACEMENTS[2:3])
    yield from _special(SMALL[:1])


def interpreted(quick: bool) -> Iterator[Case]:
    """Few and small enough for Triton's interpreter."""
    rows = itertools.chain(_by_turns(TINY), _special(TINY[:1]))
    yield from itertools.islice(rows, 0, None, 3 if quick else 1)


def chosen(extent: str | None, small: bool) -> list[Case]:
    """extent: "quick", "full" or None for the usual; small: for Triton's interpreter."""
    if small:
        return list(interpreted(quick=extent != "full"))
    return list({"quick": quick, "full": full}.get(extent or "", usual)())


def _by_turns(shapes: tuple[Shape, ...]) -> Iterator[Case]:
    turns = itertools.cycle(itertools.product(LAYOUTS, STYLES))
    for dtype in DTYPES:
        for shape in shapes:
            layout, (maps, activation) = next(turns)
            yield Case(shape, dtype, layout, maps, activation)
        next(turns)  # else a size would have the same style in every type


def _special(shapes: tuple[Shape, ...]) -> Iterator[Case]:
    for shape, dtype, layout in itertools.product(shapes, DTYPES, LAYOUTS):
        yield Case(shape, dtype, layout, "ties", None)
    for shape, dtype in itertools.product(shapes, ("float16", "bfloat16")):
        yield Case(shape, dtype, "nchw", "peaked", None, wide_parameters=True)
