"""The march of the backward in channels_last: lanes are channels, and a strip of columns stands in a lane's registers.

Lane (c, s) owns columns s * COLUMNS .. s * COLUMNS + COLUMNS - 1 of a tile, so that neighbours are registers and
nothing is exchanged. Beyond the strip it knows two columns of x and one window on either side (HALO), unless one strip
is the whole row. Tuples are of columns, each [BLOCK_C, BLOCK_W] (channels, strips):

    xs   [COLUMNS + 4]   sign * x of a row, from column -2 of the strip on
    hs   [COLUMNS + 2]   maximum of a window's three columns of that row, from the window around column -1 on
    ts   [COLUMNS + 2]   dl of the windows around that column that this row has won
"""

import triton
import triton.language as tl

from .maxpool_backward import finish, winning_rows
from .primitives import clamp, load_apart, maximum, widen


@triton.jit
def load_columns(row_ptr, offsets, sign, m_c, COLUMNS: tl.constexpr, HALO: tl.constexpr, EVEN_C: tl.constexpr):
    """xs of one row. Beyond a border stands the nearest pixel inside, which is in the same windows."""
    ptrs = ()
    for j in tl.static_range(COLUMNS + 4 if HALO else COLUMNS):
        ptrs = ptrs + (row_ptr + offsets[j],)
    loaded = load_apart(ptrs, None if EVEN_C else m_c)
    xs = ()
    for j in tl.static_range(COLUMNS + 4 if HALO else COLUMNS):
        xs = xs + (loaded[j].to(sign.dtype) * sign,)
    if not HALO:
        xs = (xs[0], xs[0]) + xs + (xs[COLUMNS - 1], xs[COLUMNS - 1])
    return xs


@triton.jit
def row_maxima(xs, COLUMNS: tl.constexpr, HALO: tl.constexpr):
    """hs of one row."""
    hs = ()
    for j in tl.static_range(COLUMNS + 2):
        if HALO or (j >= 1 and j <= COLUMNS):
            hs = hs + (maximum(maximum(xs[j], xs[j + 1]), xs[j + 2]),)
        else:
            hs = hs + (xs[j],)  # no window is there; not read
    return hs


@triton.jit
def collect(xs, ts, first, J: tl.constexpr, COLUMNS: tl.constexpr, HALO: tl.constexpr):
    """t of column J: from the windows of which it holds the first maximum of its row.

    Comparisons are negated where a NaN has to win, as in max_pool2d.
    """
    x = xs[J + 2]
    centre = (xs[J + 3] > x) == 0
    if J > 0:
        centre = centre & ((xs[J + 1] >= x) == 0)
    elif HALO:
        centre = centre & (first | ((xs[J + 1] >= x) == 0))
    t = tl.where(centre, ts[J + 1], 0.0)
    # where(p, t + a, t) is one predicated addition; t + where(p, a, 0) is two instructions
    if HALO or J > 0:
        t = tl.where((maximum(xs[J], xs[J + 1]) >= x) == 0, t + ts[J], t)
    if HALO or J < COLUMNS - 1:
        t = tl.where((maximum(xs[J + 3], xs[J + 4]) > x) == 0, t + ts[J + 2], t)
    return t


@triton.jit
def march_columns(
    dy_ptr,  # or None
    x_ptr,
    a_ptr,  # A and dl with a border, as in `maxpool_backward`
    dl_ptr,
    dx_ptr,
    c,  # [BLOCK_C]
    sign,  # [BLOCK_C, 1], as are the others
    scale,
    shift,  # or None
    centre,  # or None
    weight,
    r_begin,
    r_end,
    H,
    W,
    G,
    pitch,
    dy_strides,  # (c, h, w)
    x_strides,
    dx_strides,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALO: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Writes dx of rows r_begin .. r_end - 1 of channels c; returns the sums of t * x and of t [BLOCK_C]."""
    dtype: tl.constexpr = dl_ptr.dtype.element_ty
    dy_stride_c, dy_stride_h, dy_stride_w = dy_strides
    x_stride_c, x_stride_h, x_stride_w = x_strides
    dx_stride_c, dx_stride_h, dx_stride_w = dx_strides
    m_c = (c < G)[:, None]
    o_c = widen(c, WIDE)[:, None]
    sum_tx = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    sum_t = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for w0 in range(0, W, BLOCK_W * COLUMNS):
        col = w0 + tl.arange(0, BLOCK_W)[None, :] * COLUMNS  # the first of each strip
        offsets = ()
        for j in tl.static_range(COLUMNS + 4 if HALO else COLUMNS):
            o_w = widen(clamp(col + (j - (2 if HALO else 0)), W), WIDE) * x_stride_w
            offsets = offsets + (o_c * x_stride_c + o_w,)
        start = tl.maximum(r_begin, 1)
        row_ptr = x_ptr + clamp(start - 2, H).to(tl.int64) * x_stride_h
        x_a = load_columns(row_ptr, offsets, sign, m_c, COLUMNS, HALO, EVEN_C)
        row_ptr = x_ptr + clamp(start - 1, H).to(tl.int64) * x_stride_h
        x_b = load_columns(row_ptr, offsets, sign, m_c, COLUMNS, HALO, EVEN_C)
        h_a = row_maxima(x_a, COLUMNS, HALO)
        h_b = row_maxima(x_b, COLUMNS, HALO)
        t_a = ()
        for _ in tl.static_range(COLUMNS + 2):
            t_a = t_a + (tl.zeros([BLOCK_C, BLOCK_W], dtype),)
        t_b = t_a
        for first_row in range(start, r_end + 2, ROWS):
            for i in tl.static_range(ROWS):
                row = first_row + i
                row_ptr = x_ptr + clamp(row, H).to(tl.int64) * x_stride_h
                x_n = load_columns(row_ptr, offsets, sign, m_c, COLUMNS, HALO, EVEN_C)
                h_n = row_maxima(x_n, COLUMNS, HALO)
                # the windows around row - 1
                dl_row = dl_ptr + (row - r_begin) * pitch
                ts_a = ()
                ts_b = ()
                ts_n = ()
                for j in tl.static_range(COLUMNS + 2):
                    if HALO or (j >= 1 and j <= COLUMNS):
                        dl = tl.load(dl_row + (col + j))
                        above, below = winning_rows(h_a[j], h_b[j], h_n[j], row >= 2)
                        ts_a = ts_a + (tl.where(above, t_a[j] + dl, t_a[j]),)
                        ts_b = ts_b + (tl.where(above | below, t_b[j], t_b[j] + dl),)
                        ts_n = ts_n + (tl.where(below, dl, 0.0),)
                    else:
                        ts_a = ts_a + (t_a[j],)
                        ts_b = ts_b + (t_b[j],)
                        ts_n = ts_n + (t_a[j],)
                # row - 2 has heard from all its windows
                done = row - 2
                done_ptr = x_ptr + clamp(done, H).to(tl.int64) * x_stride_h
                o_a = tl.maximum(done - r_begin + 1, 0) * pitch
                for j in tl.static_range(COLUMNS):
                    t = collect(x_a, ts_a, col == 0, j, COLUMNS, HALO)
                    o_w = widen(col + j, WIDE)
                    m = col + j < W
                    if not EVEN_C:
                        m = m & m_c
                    x = load_apart((done_ptr + offsets[j + (2 if HALO else 0)],), m)[0].to(dtype)
                    tx, t = finish(
                        t, x, dy_ptr, a_ptr, o_a + (col + (j + 1)), dx_ptr, done, m,
                        o_c * dy_stride_c + o_w * dy_stride_w, o_c * dx_stride_c + o_w * dx_stride_w,
                        scale, shift, centre, weight, r_begin, r_end, H, dy_stride_h, dx_stride_h, RELU_U,
                    )  # fmt: skip
                    sum_tx += tx
                    sum_t += t
                x_a, h_a, t_a = x_b, h_b, ts_b
                x_b, h_b, t_b = x_n, h_n, ts_n
    return tl.sum(sum_tx, 1), tl.sum(sum_t, 1)
