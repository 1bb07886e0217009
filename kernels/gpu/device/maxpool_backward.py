"""What both marches of the backward share: which row wins a window, and what becomes of a pixel's sum t.

A and dl lie with a border, as [rows + 4, pitch]: row i is row r_begin - 1 + i of the map and column j its column
j - LEFT. dl is 0 beyond the map, so that windows beyond it give nothing and need no masks.
"""

import triton
import triton.language as tl

from .primitives import load_apart, maximum, store_apart


@triton.jit
def winning_rows(above, here, below, has_above):
    """Of a window, given the maxima of its three rows: whether the first holds the maximum; whether the last does.

    Neither: the middle one; so too where one is NaN, and dl with it.
    """
    return has_above & (above >= maximum(here, below)), below > maximum(above, here)


@triton.jit
def bordered(i, r_begin, r_end, H, W, pitch, LEFT: tl.constexpr):
    """Of element i of rows with a border: its pixel, its row, and whether march over r_begin .. r_end - 1 sees it."""
    row = r_begin - 1 + i // pitch
    col = i % pitch - LEFT
    inside = (row >= 0) & (row < H) & (row <= r_end) & (col >= 0) & (col < W)
    return row * W + col, row, inside


@triton.jit
def finish(
    t,
    x,
    dy_ptr,  # of these pixels, or None, and so the next
    a_ptr,
    dx_ptr,
    row,
    m,  # pixels to be written, if their row is
    scale,
    shift,  # or None
    centre,  # or None
    weight,
    r_begin,
    r_end,
    RELU_U: tl.constexpr,
):
    """Writes dx = D * (1 + A) + scale * v * t of pixels of one row; returns t * x and t, 0 where nothing is written."""
    dtype: tl.constexpr = t.dtype
    m = (row >= r_begin) & (row < r_end) & m
    if centre is not None:
        x -= centre
    if RELU_U:
        u = scale * x
        if shift is not None:
            u += shift
        t = tl.where(u <= 0, 0.0, t)
    t = tl.where(m, t, 0.0)
    dx = weight * t
    if dy_ptr is not None:
        dy = load_apart((dy_ptr,), m)[0].to(dtype)
        dx += dy + tl.load(a_ptr) * dy
    store_apart(dx_ptr, dx, m)
    return t * x, t
