"""The march of the backward in channels_last: lanes are channels, and a strip of columns stands in a lane's registers.

Lane (c, s) owns columns s * COLUMNS .. s * COLUMNS + COLUMNS - 1 of a tile, so that neighbours are registers and
nothing is exchanged. Beyond the strip it knows two columns of x and one window on either side (HALO), unless one strip
is the whole row. Where tensors are dense and tiles whole, the columns of a strip have one address, and constants of
PIXEL. x is kept until its row is done. Tuples are of columns, each [BLOCK_C, BLOCK_W] (channels, strips):

    xs   [COLUMNS + 4]   sign * x of a row, from column -2 of the strip on
    hs   [COLUMNS + 2]   maximum of a window's three columns of that row, from the window around column -1 on
    ts   [COLUMNS + 2]   dl of the windows around that column that this row has won
"""

import triton
import triton.language as tl

from .maxpool_backward import finish
from .primitives import clamp, load_apart, maximum, widen


@triton.jit
def column_at(row_ptr, offsets, J: tl.constexpr, COLUMNS: tl.constexpr, HALO: tl.constexpr, PIXEL: tl.constexpr):
    """Addresses of column J of each strip."""
    if PIXEL and J >= 0 and J < COLUMNS:
        return row_ptr + offsets[HALO] + J * PIXEL  # one address, and a constant
    else:
        return row_ptr + offsets[HALO + J]


@triton.jit
def column_to(row_ptr, o_c, col, J: tl.constexpr, stride_w, PIXEL: tl.constexpr, WIDE: tl.constexpr):
    """Likewise of dy and dx, which are not accessed beyond the strip."""
    if PIXEL:
        return row_ptr + (o_c + widen(col, WIDE) * stride_w) + J * PIXEL
    else:
        return row_ptr + (o_c + widen(col + J, WIDE) * stride_w)


@triton.jit
def load_columns(
    row_ptr, offsets, m_c, COLUMNS: tl.constexpr, HALO: tl.constexpr, PIXEL: tl.constexpr, EVEN_C: tl.constexpr
):
    """x of one row. Beyond a border stands the nearest pixel inside, which is in the same windows."""
    ptrs = ()
    for j in tl.static_range(COLUMNS + 2 * HALO):
        ptrs = ptrs + (column_at(row_ptr, offsets, j - HALO, COLUMNS, HALO, PIXEL),)
    return load_apart(ptrs, None if EVEN_C else m_c)


@triton.jit
def signed(loaded, sign, COLUMNS: tl.constexpr, HALO: tl.constexpr):
    """xs of one row."""
    xs = ()
    for j in tl.static_range(COLUMNS + 2 * HALO):
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
def collected(xs, ts, first, COLUMNS: tl.constexpr, HALO: tl.constexpr):
    """t of each column of a row: ts of the windows of which it holds the first maximum of the row."""
    lefts = ()  # of windows from that around column 0 on: whether the first column to reach its maximum is the left
    rights = ()  # of those from that around column -1 on: whether it is the right
    for j in tl.static_range(COLUMNS + 1):
        lefts = lefts + (xs[j + 1] >= maximum(xs[j + 2], xs[j + 3]),)
        rights = rights + (xs[j + 2] > maximum(xs[j], xs[j + 1]),)
    row = ()
    for j in tl.static_range(COLUMNS):
        others = rights[j + 1]
        if j > 0:
            others = others | lefts[j]
        elif HALO:
            others = others | (lefts[0] & (first == 0))
        t = tl.where(others, 0.0, ts[j + 1])
        # where(p, t + a, t) is one predicated addition; t + where(p, a, 0) is two instructions
        if HALO or j > 0:
            t = tl.where(rights[j], t + ts[j], t)
        if HALO or j < COLUMNS - 1:
            t = tl.where(lefts[j + 1], t + ts[j + 2], t)
        row = row + (t,)
    return row


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
    PIXEL: tl.constexpr,  # elements from a pixel to the next of dense tensors, of which tiles are whole; or 0
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
        for j in tl.static_range(COLUMNS + 2 * HALO):
            o_w = widen(clamp(col + (j - HALO), W), WIDE) * x_stride_w
            offsets = offsets + (o_c * x_stride_c + o_w,)
        start = tl.maximum(r_begin, 1)
        row_ptr = x_ptr + clamp(start - 2, H).to(tl.int64) * x_stride_h
        x_a = load_columns(row_ptr, offsets, m_c, COLUMNS, HALO, PIXEL, EVEN_C)
        row_ptr = x_ptr + clamp(start - 1, H).to(tl.int64) * x_stride_h
        x_b = load_columns(row_ptr, offsets, m_c, COLUMNS, HALO, PIXEL, EVEN_C)
        top = row_maxima(signed(x_a, sign, COLUMNS, HALO), COLUMNS, HALO)
        h_b = row_maxima(signed(x_b, sign, COLUMNS, HALO), COLUMNS, HALO)
        h_a = ()
        h_ab = ()
        t_a = ()
        for j in tl.static_range(COLUMNS + 2):
            h_a = h_a + (tl.where(start >= 2, top[j], float("nan")),)  # above the map: it wins nothing
            h_ab = h_ab + (maximum(top[j], h_b[j]),)
            t_a = t_a + (tl.zeros([BLOCK_C, BLOCK_W], dtype),)
        t_b = t_a
        for first_row in range(start, r_end + 2, ROWS):
            for i in tl.static_range(ROWS):
                row = first_row + i
                row_ptr = x_ptr + clamp(row, H).to(tl.int64) * x_stride_h
                x_n = load_columns(row_ptr, offsets, m_c, COLUMNS, HALO, PIXEL, EVEN_C)
                h_n = row_maxima(signed(x_n, sign, COLUMNS, HALO), COLUMNS, HALO)
                # the windows around row - 1
                dl_row = dl_ptr + (row - r_begin) * pitch
                h_bn = ()
                ts_a = ()
                ts_b = ()
                ts_n = ()
                for j in tl.static_range(COLUMNS + 2):
                    h_bn = h_bn + (maximum(h_b[j], h_n[j]),)
                    if HALO or (j >= 1 and j <= COLUMNS):
                        dl = tl.load(dl_row + (col + j))
                        above = h_a[j] >= h_bn[j]
                        below = h_n[j] > h_ab[j]
                        ts_a = ts_a + (tl.where(above, t_a[j] + dl, t_a[j]),)
                        ts_b = ts_b + (tl.where(above | below, t_b[j], t_b[j] + dl),)
                        ts_n = ts_n + (tl.where(below, dl, 0.0),)
                    else:
                        ts_a = ts_a + (t_a[j],)
                        ts_b = ts_b + (t_b[j],)
                        ts_n = ts_n + (t_a[j],)
                # row - 2 has heard from all its windows
                done = row - 2
                o_row = tl.cast(done, tl.int64)
                found = collected(signed(x_a, sign, COLUMNS, HALO), ts_a, col == 0, COLUMNS, HALO)
                for j in tl.static_range(COLUMNS):
                    m = col + j < W
                    if PIXEL:
                        m = True
                    if not EVEN_C:
                        m = m & m_c
                    dy_row_ptr = None
                    a_row_ptr = None
                    if dy_ptr is not None:
                        dy_row_ptr = column_to(
                            dy_ptr + o_row * dy_stride_h, o_c * dy_stride_c, col, j, dy_stride_w, PIXEL, WIDE
                        )
                        a_row_ptr = a_ptr + tl.maximum(done - r_begin + 1, 0) * pitch + col + (j + 1)
                    dx_row_ptr = column_to(
                        dx_ptr + o_row * dx_stride_h, o_c * dx_stride_c, col, j, dx_stride_w, PIXEL, WIDE
                    )
                    tx, t = finish(
                        found[j], x_a[HALO + j].to(dtype), dy_row_ptr, a_row_ptr, dx_row_ptr, done, m,
                        scale, shift, centre, weight, r_begin, r_end, RELU_U,
                    )  # fmt: skip
                    sum_tx += tx
                    sum_t += t
                x_a, h_a, t_a = x_b, h_b, ts_b
                x_b, h_b, t_b = x_n, h_n, ts_n
                h_ab = h_bn
    return tl.sum(sum_tx, 1), tl.sum(sum_t, 1)
