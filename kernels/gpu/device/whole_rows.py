"""The march of the backward on small maps in channels_last: lanes are channels, and a lane holds whole rows.

MAP_H x MAP_W, a program per slab. A row is a tuple of MAP_W columns [BLOCK_C, 1], so that neighbours are registers and
nothing is beyond the map. Sizes are constants, C among them: an access has its row's address, plus a constant. It moves
a tile of columns, of 8, 4, 2 or 1, which leaves the compiler fewer accesses.

x, dy and dx are dense. LANE channels of each column belong to a lane.
"""

import triton
import triton.language as tl

from .column_runs import join_columns, split_columns
from .maxpool_backward import winning_rows
from .primitives import load_apart, maximum, sign_of, store_apart


@triton.jit
def columns_at(row_ptr, FIRST: tl.constexpr, N: tl.constexpr, PIXEL: tl.constexpr, LANE: tl.constexpr):
    """Addresses [BLOCK_C, N]. The promise of neighbours lays lanes along channels, and is LANE of them long."""
    columns = row_ptr + (tl.arange(0, N) + FIRST)[None, :] * PIXEL
    if LANE == 1:
        return tl.multiple_of(tl.max_contiguous(columns, [2, 1]), [1, 1])
    else:
        return tl.max_contiguous(columns, [LANE, 1])


@triton.jit
def load_row(row_ptr, m_c, MAP_W: tl.constexpr, PIXEL: tl.constexpr, LANE: tl.constexpr, EVEN_C: tl.constexpr):
    """The tiles of a row: of 8, 4, 2 and 1 columns, each where MAP_W has this bit; 0 in channels beyond the slab."""
    ptrs = ()
    for i in tl.static_range(4):
        if MAP_W & (8 >> i):
            ptrs = ptrs + (columns_at(row_ptr, MAP_W // (16 >> i) * (16 >> i), 8 >> i, PIXEL, LANE),)
    return load_apart(ptrs, None if EVEN_C else m_c)


@triton.jit
def columns_of(x):
    """A tile [BLOCK_C, N] as N columns [BLOCK_C, 1]."""
    if x.shape[1] == 8:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], 4, 2]))
        e = split_columns(even, 4)
        o = split_columns(odd, 4)
        return (e[0], o[0], e[1], o[1], e[2], o[2], e[3], o[3])
    else:
        return split_columns(x, x.shape[1])


@triton.jit
def tile_of(row, FIRST: tl.constexpr, N: tl.constexpr):
    """`columns_of` undone: N columns of a row from FIRST on."""
    if N == 8:
        even = join_columns((row[FIRST], row[FIRST + 2], row[FIRST + 4], row[FIRST + 6]), 0, 4)
        odd = join_columns((row[FIRST + 1], row[FIRST + 3], row[FIRST + 5], row[FIRST + 7]), 0, 4)
        return tl.reshape(tl.join(even, odd), [even.shape[0], 8])
    else:
        return join_columns(row, FIRST, N)


@triton.jit
def signed(tiles, sign):
    """sign * x of a row's columns, in the type of comparison."""
    xs = ()
    for i in tl.static_range(len(tiles)):
        xs = xs + columns_of(tiles[i].to(sign.dtype) * sign)
    return xs


@triton.jit
def read_row(row_ptr, sign, m_c, MAP_W: tl.constexpr, PIXEL: tl.constexpr, LANE: tl.constexpr, EVEN_C: tl.constexpr):
    """The tiles of a row of x, and of sign * x the maximum of each window's three columns."""
    tiles = load_row(row_ptr, m_c, MAP_W, PIXEL, LANE, EVEN_C)
    xs = signed(tiles, sign)
    hs = (maximum(xs[0], xs[1]),)
    for j in tl.static_range(1, MAP_W - 1):
        hs = hs + (maximum(maximum(xs[j - 1], xs[j]), xs[j + 1]),)
    return tiles, hs + (maximum(xs[MAP_W - 2], xs[MAP_W - 1]),)


@triton.jit
def collected(xs, ts, MAP_W: tl.constexpr):
    """t of each column of a row: ts of the windows of which it holds the first maximum of the row."""
    lefts = ()  # of all windows but the first: whether the first column to reach its maximum is the left
    rights = ()  # of all but the last: whether it is the right
    for j in tl.static_range(1, MAP_W):
        if j < MAP_W - 1:
            lefts = lefts + (xs[j - 1] >= maximum(xs[j], xs[j + 1]),)
        else:
            lefts = lefts + (xs[j - 1] >= xs[j],)
    for j in tl.static_range(MAP_W - 1):
        if j > 0:
            rights = rights + (xs[j + 1] > maximum(xs[j - 1], xs[j]),)
        else:
            rights = rights + (xs[1] > xs[0],)
    row = ()
    for j in tl.static_range(MAP_W):
        if j == 0:
            t = tl.where(rights[0], 0.0, ts[0])
        elif j == MAP_W - 1:
            t = tl.where(lefts[j - 1], 0.0, ts[j])
        else:
            t = tl.where(lefts[j - 1] | rights[j], 0.0, ts[j])
        # one predicated addition, as in `march_channels_last.collect`
        if j < MAP_W - 1:
            t = tl.where(lefts[j], t + ts[j + 1], t)
        if j > 0:
            t = tl.where(rights[j - 1], t + ts[j - 1], t)
        row = row + (t,)
    return row


@triton.jit
def store_columns(
    dx_ptr,
    dy,  # [BLOCK_C, N] or None
    ts,
    attention,
    weight,
    m_c,
    N: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    LANE: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Writes dx = D * (1 + A) + scale * v * t of the N columns that `load_row` has in one tile."""
    FIRST: tl.constexpr = MAP_W // (2 * N) * (2 * N)
    dx = weight * tile_of(ts, FIRST, N)
    if dy is not None:
        dy = dy.to(dx.dtype)
        dx += dy + tile_of(attention, FIRST, N) * dy
    columns = columns_at(dx_ptr, FIRST, N, PIXEL, LANE)
    store_apart(columns, dx, None if EVEN_C else m_c)


@triton.jit
def finish_row(
    tiles,  # of x
    ts,
    dy_ptr,  # [BLOCK_C, 1], at the row's first column, or None; dx likewise
    a_ptr,  # not read without dy
    dx_ptr,
    m_c,
    sign,
    scale,
    shift,  # or None
    centre,  # or None
    weight,
    sum_tx,
    sum_t,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    LANE: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Writes dx of a row that has heard from all its windows; returns the sums with those of this row."""
    dtype: tl.constexpr = weight.dtype
    raw = ()
    for i in tl.static_range(len(tiles)):
        raw = raw + columns_of(tiles[i].to(dtype))
    found = collected(signed(tiles, sign), ts, MAP_W)
    row = ()
    attention = ()
    for j in tl.static_range(MAP_W):
        t = found[j]
        x = raw[j]
        if centre is not None:
            x -= centre
        if RELU_U:
            u = scale * x
            if shift is not None:
                u += shift
            t = tl.where(u <= 0, 0.0, t)
        sum_tx += t * x
        sum_t += t
        row = row + (t,)
        if dy_ptr is not None:
            attention = attention + (tl.full(t.shape, tl.load(a_ptr + j), dtype),)
    if dy_ptr is not None:
        dys = load_row(dy_ptr, m_c, MAP_W, PIXEL, LANE, EVEN_C)
    for i in tl.static_range(len(tiles)):
        dy = None
        if dy_ptr is not None:
            dy = dys[i]
        store_columns(dx_ptr, dy, row, attention, weight, m_c, tiles[i].shape[1], MAP_W, PIXEL, LANE, EVEN_C)
    return sum_tx, sum_t


@triton.jit
def march_rows(
    dy_ptr,  # [BLOCK_C, 1], at the map's first pixel, or None; x and dx likewise
    x_ptr,
    a_ptr,  # A and dl with a border, as in `maxpool_backward`, MAP_W + 2 columns
    dl_ptr,
    dx_ptr,
    m_c,
    sign,
    scale,
    shift,  # or None
    centre,  # or None
    weight,
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    LANE: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Writes dx of BLOCK_C channels; returns the sums of t * x and of t [BLOCK_C, 1]."""
    # after three rows every value is in its old register again
    TURN: tl.constexpr = 3 if MAP_H % 3 == 2 else MAP_H - 2
    ROW: tl.constexpr = MAP_W * PIXEL
    PITCH: tl.constexpr = MAP_W + 2
    if dy_ptr is not None:
        a_ptr += PITCH + 1
    dl_ptr += PITCH + 1
    sum_tx = tl.zeros_like(weight)
    sum_t = tl.zeros_like(weight)
    x_a, h_a = read_row(x_ptr, sign, m_c, MAP_W, PIXEL, LANE, EVEN_C)
    x_b, h_b = read_row(x_ptr + ROW, sign, m_c, MAP_W, PIXEL, LANE, EVEN_C)
    t_a = ()
    t_b = ()
    for j in tl.static_range(MAP_W):  # the windows around the first row
        dl = tl.load(dl_ptr + j)
        below = h_b[j] > h_a[j]
        t_a = t_a + (tl.where(below, 0.0, dl),)
        t_b = t_b + (tl.where(below, dl, 0.0),)
    for first_row in range(0, MAP_H - 2, TURN):
        for i in tl.static_range(TURN):
            row = first_row + i
            x_n, h_n = read_row(x_ptr + (row + 2) * ROW, sign, m_c, MAP_W, PIXEL, LANE, EVEN_C)
            ts_a = ()
            ts_b = ()
            ts_n = ()
            for j in tl.static_range(MAP_W):  # the windows around row + 1
                dl = tl.load(dl_ptr + (row + 1) * PITCH + j)
                above, below = winning_rows(h_a[j], h_b[j], h_n[j], True)
                ts_a = ts_a + (tl.where(above, t_a[j] + dl, t_a[j]),)
                ts_b = ts_b + (tl.where(above | below, t_b[j], t_b[j] + dl),)
                ts_n = ts_n + (tl.where(below, dl, 0.0),)
            dy_row_ptr = None
            a_row_ptr = None
            if dy_ptr is not None:
                dy_row_ptr = dy_ptr + row * ROW
                a_row_ptr = a_ptr + row * PITCH
            sum_tx, sum_t = finish_row(
                x_a, ts_a, dy_row_ptr, a_row_ptr, dx_ptr + row * ROW, m_c, sign,
                scale, shift, centre, weight, sum_tx, sum_t, MAP_W, PIXEL, LANE, RELU_U, EVEN_C,
            )  # fmt: skip
            x_a, h_a, t_a = x_b, h_b, ts_b
            x_b, h_b, t_b = x_n, h_n, ts_n
    ts_a = ()
    ts_b = ()
    for j in tl.static_range(MAP_W):  # the windows around the last row
        dl = tl.load(dl_ptr + (MAP_H - 1) * PITCH + j)
        above = h_a[j] >= h_b[j]
        ts_a = ts_a + (tl.where(above, t_a[j] + dl, t_a[j]),)
        ts_b = ts_b + (tl.where(above, t_b[j], t_b[j] + dl),)
    for row in range(MAP_H - 2, MAP_H):
        dy_row_ptr = None
        a_row_ptr = None
        if dy_ptr is not None:
            dy_row_ptr = dy_ptr + row * ROW
            a_row_ptr = a_ptr + row * PITCH
        sum_tx, sum_t = finish_row(
            x_a, ts_a, dy_row_ptr, a_row_ptr, dx_ptr + row * ROW, m_c, sign,
            scale, shift, centre, weight, sum_tx, sum_t, MAP_W, PIXEL, LANE, RELU_U, EVEN_C,
        )  # fmt: skip
        x_a, ts_a = x_b, ts_b
    return sum_tx, sum_t


@triton.jit
def rows_input_gradient(
    dy_ptr,  # or None
    x_ptr,
    scale_ptr,
    shift_ptr,  # or None
    centre_ptr,  # or None; else x stands for x - centre in u and in the sums
    v_ptr,
    a_ptr,  # A and dl, as in `march_rows`; A is not read without dy
    dl_ptr,
    dx_ptr,
    dv_ptr,  # [G], this program's partial sums
    dscale_ptr,  # [G]
    dshift_ptr,  # [G] or None
    G,
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    LANE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Writes dx of the slab, and dv, dscale and dshift. See `backward` for the formulas."""
    dtype: tl.constexpr = dl_ptr.dtype.element_ty
    # as in `input_gradient`
    compare: tl.constexpr = tl.float32 if x_ptr.dtype.element_ty == tl.bfloat16 else x_ptr.dtype.element_ty
    for c0 in range(0, G, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        m_c = c < G
        scale, v = load_apart((scale_ptr + c, v_ptr + c), m_c)
        scale = scale.to(dtype)
        v = v.to(dtype)
        shift = None
        if shift_ptr is not None:
            shift = load_apart((shift_ptr + c,), m_c)[0].to(dtype)
        centre = None
        if centre_ptr is not None:
            centre = load_apart((centre_ptr + c,), m_c)[0].to(dtype)
        dy_c_ptr = None
        if dy_ptr is not None:
            dy_c_ptr = dy_ptr + c
        sum_tx, sum_t = march_rows(
            dy_c_ptr, x_ptr + c, a_ptr, dl_ptr, dx_ptr + c, m_c, sign_of(scale).to(compare),
            scale, shift, centre, scale * v, MAP_H, MAP_W, PIXEL, LANE, RELU_U, EVEN_C,
        )  # fmt: skip
        dv = scale * sum_tx
        if dshift_ptr is not None:
            if shift_ptr is not None:
                dv += shift * sum_t
            store_apart(dshift_ptr + c, v * sum_t, m_c)
        store_apart(dv_ptr + c, dv, m_c)
        store_apart(dscale_ptr + c, v * sum_tx, m_c)
