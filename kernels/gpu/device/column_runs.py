"""Runs of neighbouring columns: a lane loads COLUMNS of them at once and holds each in a tile of its own.

Neighbours of a column are then in the same lane, or in the lane beside it, where a shuffle fetches them.
"""

import triton
import triton.language as tl

from .primitives import maximum


@triton.jit
def split_columns(x, COLUMNS: tl.constexpr):
    """A tile [channels, columns] as COLUMNS tiles: of every run of COLUMNS columns the first, the second, ..."""
    if COLUMNS == 1:
        return (x,)
    elif COLUMNS == 2:
        first, second = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        return first, second
    else:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2]))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def join_columns(tiles, i, COLUMNS: tl.constexpr):
    """Tiles i .. i + COLUMNS - 1 of neighbouring columns as one tile of all columns: `split_columns` undone."""
    if COLUMNS == 1:
        return tiles[i]
    else:
        if COLUMNS == 2:
            x = tl.join(tiles[i], tiles[i + 1])
        else:
            x = tl.join(tl.join(tiles[i], tiles[i + 2]), tl.join(tiles[i + 1], tiles[i + 3]))
        return tl.reshape(x, [x.shape[0], x.shape[1] * COLUMNS])


@triton.jit
def with_neighbours(tiles, run, first, last, COLUMNS: tl.constexpr):
    """Tiles of COLUMNS neighbouring columns, between those to their left and right, which other lanes hold.

    `run` counts runs; those before `first` are copies of it, and those beyond `last` of that. At a border the missing
    neighbour may be any column of the window: of runs of 1 and 2 the clamped index finds one, of runs of 4 it would be
    three columns away.
    """
    RUNS: tl.constexpr = tiles[0].shape[1]
    shape: tl.constexpr = tiles[0].shape
    i_left = tl.broadcast_to(tl.maximum(run - 1, 0)[None, :], shape)
    i_right = tl.broadcast_to(tl.minimum(run + 1, RUNS - 1)[None, :], shape)
    left = tl.gather(tiles[COLUMNS - 1], i_left, 1)
    right = tl.gather(tiles[0], i_right, 1)
    if COLUMNS == 4:
        left = tl.where((run == first)[None, :], tiles[0], left)
        right = tl.where((run == last)[None, :], tiles[3], right)
    return (left,) + tiles + (right,)


@triton.jit
def maxima3(tiles, N: tl.constexpr):
    """Maxima of three neighbours: of N + 2 tiles, N."""
    found = ()
    for i in tl.static_range(N):
        found = found + (maximum(maximum(tiles[i], tiles[i + 2]), tiles[i + 1]),)
    return found
