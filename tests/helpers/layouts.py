"""The same values in memory layouts that a caller may hand over; whatever lies between and around them is NaN."""

from collections.abc import Callable

import torch
from torch import Tensor


def every_other_channel(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return _nan(x, n, 2 * c, h, w)[:, ::2].copy_(x)


def every_other_row(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return _nan(x, n, c, 2 * h, w)[:, :, 1::2].copy_(x)


def cropped(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return _nan(x, n, c, h + 2, w + 2)[..., 1:-1, 1:-1].copy_(x)


def transposed(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return _nan(x, n, c, w, h).transpose(2, 3).copy_(x)


def unaligned(x: Tensor) -> Tensor:
    """Contiguous, but one element past any alignment."""
    return _nan(x, x.numel() + 2)[1:-1].view(x.shape).copy_(x)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def first_channels_last(x: Tensor) -> Tensor:
    """The first channels of a wider channels_last tensor."""
    n, c, h, w = x.shape
    return _nan(x, n, h, w, c + 3).permute(0, 3, 1, 2)[:, :c].copy_(x)


def same_image(x: Tensor) -> Tensor:
    """The first image for all, by a batch stride of 0."""
    return x[:1].contiguous().expand(x.shape)


def one_number(x: Tensor) -> Tensor:
    """One number for all, as the gradient of a sum arrives: every stride 0."""
    return x[0, 0, 0, 0].clone().expand(x.shape)


def _nan(x: Tensor, *shape: int) -> Tensor:
    return x.new_full(shape, torch.nan)


STRIDED: tuple[Callable[[Tensor], Tensor], ...] = (
    every_other_channel, every_other_row, cropped, transposed, unaligned, first_channels_last, same_image, one_number,
)  # fmt: skip
