"""The march of the backward in NCHW: lanes hold runs of COLUMNS neighbouring columns, and the window around each.

What a row has won in the window around a column goes to that column or to one of its two neighbours. These are in the
same lane, or in the lane beside it, which fetches it (`tl.gather`). Tiles are [BLOCK_C, BLOCK_W] (channels, columns),
or, of the first columns of all runs, the second, ..., [BLOCK_C, RUNS]. A row longer than a tile is cut into tiles that
overlap: HALO columns at either end of a tile are there for the windows of the others.
"""

import triton
import triton.language as tl

from .column_runs import join_columns, split_columns, with_neighbours
from .maxpool_backward import finish
from .primitives import aligned, clamp, maximum, widen


@triton.jit
def row_offsets(o_c, first, W, strides, BLOCK_W: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_W] in a row, from run `first` on; beyond a border those of the nearest run."""
    stride_c, _, stride_w = strides
    place = tl.arange(0, BLOCK_W)
    if COLUMNS == 1:
        o = o_c * stride_c + widen(clamp(first + place, W), WIDE)[None, :] * stride_w
        # Clamping hides from the compiler that these are neighbours along a row, and Triton 3.6 would lay lanes along
        # channels, 32 lines of memory per access. So they are promised to be; and since that is not true beyond a
        # border, nor of every stride, no alignment is admitted: every access is of one element, and nothing else
        # follows from the promise (tests/kernels/gpu/access_widths.py).
        return tl.multiple_of(tl.max_contiguous(o, [1, BLOCK_W]), [1, 1])
    else:
        inside = clamp(first + place // COLUMNS, W // COLUMNS) * COLUMNS + place % COLUMNS
        o_col = widen(tl.max_contiguous(tl.multiple_of(inside, COLUMNS), COLUMNS), WIDE)
        return o_c * aligned(stride_c, COLUMNS) + o_col[None, :] * stride_w


@triton.jit
def load_row(row_ptr, o_x, sign, m_c, lane, first, last, COLUMNS: tl.constexpr, EVEN_C: tl.constexpr):
    """x of one row; for each column of a run, the maximum of its window; and whether the first to reach it is the left,
    the right of the window's three columns.

    Beyond a border stands a pixel of the same window, and wins nothing: to the left where the run is the `first` of the
    map, to the right because a pixel as large comes before it.
    """
    if EVEN_C:
        x = tl.load(row_ptr + o_x).to(sign.dtype)
    else:
        x = tl.load(row_ptr + o_x, mask=m_c, other=0.0).to(sign.dtype)
    xs = with_neighbours(split_columns(x * sign, COLUMNS), lane, first, last, COLUMNS)
    left = xs[0]
    if COLUMNS == 2:  # beyond the border stands the second column, which would win in its own place
        left = tl.where((lane == first)[None, :], xs[1], left)
    hs = ()
    lefts = ()
    rights = ()
    for j in tl.static_range(COLUMNS):
        x_j = xs[j + 1]
        right = xs[j + 2]
        not_left = maximum(x_j, right)
        to_left = left >= not_left
        if j == 0:
            to_left = to_left & (lane != first)[None, :]
        hs = hs + (maximum(left, not_left),)
        lefts = lefts + (to_left,)
        rights = rights + (right > maximum(left, x_j),)
        left = x_j
    return x, hs, lefts, rights


@triton.jit
def collect(ts, lefts, rights, i_left, i_right, COLUMNS: tl.constexpr):
    """t of a row, from what it has won in the window around each column: of its own, and of the two beside it."""
    from_left = tl.gather(tl.where(rights[COLUMNS - 1], ts[COLUMNS - 1], 0.0), i_left, 1)
    from_right = tl.gather(tl.where(lefts[0], ts[0], 0.0), i_right, 1)
    row = ()
    for j in tl.static_range(COLUMNS):
        t = tl.where(lefts[j] | rights[j], 0.0, ts[j])
        if j > 0:
            t = tl.where(rights[j - 1], t + ts[j - 1], t)
        else:
            t += from_left
        if j < COLUMNS - 1:
            t = tl.where(lefts[j + 1], t + ts[j + 1], t)
        else:
            t += from_right
        row = row + (t,)
    return join_columns(row, 0, COLUMNS)


@triton.jit
def march_lanes(
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
    dy_stride_h = aligned(dy_strides[1], COLUMNS)
    x_stride_h = aligned(x_strides[1], COLUMNS)
    dx_stride_h = aligned(dx_strides[1], COLUMNS)
    RUNS: tl.constexpr = BLOCK_W // COLUMNS
    W = aligned(W, COLUMNS)
    m_c = (c < G)[:, None]
    o_c = widen(c, WIDE)[:, None]
    lane = tl.arange(0, RUNS)
    # In a ring: what passes its seam is 0 without HALO, the map's borders being there, and with HALO not used.
    i_left = ((lane + (RUNS - 1)) % RUNS)[None, :] + tl.zeros([BLOCK_C, RUNS], tl.int32)
    i_right = ((lane + 1) % RUNS)[None, :] + tl.zeros([BLOCK_C, RUNS], tl.int32)
    sum_tx = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    sum_t = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for w0 in range(0, W, BLOCK_W - 2 * HALO):
        place = tl.arange(0, BLOCK_W)  # in the tile
        col = w0 - HALO + place
        run = (w0 - HALO) // COLUMNS  # the tile's first
        first = -run  # lanes of the map's first and last
        last = first + W // COLUMNS - 1
        o_x = row_offsets(o_c, run, W, x_strides, BLOCK_W, COLUMNS, WIDE)
        o_dy = row_offsets(o_c, run, W, dy_strides, BLOCK_W, COLUMNS, WIDE)
        o_dx = row_offsets(o_c, run, W, dx_strides, BLOCK_W, COLUMNS, WIDE)
        m = ((place >= HALO) & (place < BLOCK_W - HALO) & (col < W))[None, :]
        if not EVEN_C:
            m = m & m_c
        o_map = (HALO + col)[None, :]  # in A and dl
        if COLUMNS == 4:  # a lane has one channel; laid as x is: of one row, a warp would have too few runs of 4
            o_map += tl.zeros([BLOCK_C, 1], tl.int32)
        start = tl.maximum(r_begin, 1)
        row_ptr = x_ptr + clamp(start - 2, H).to(tl.int64) * x_stride_h
        x_a, top, left_a, right_a = load_row(row_ptr, o_x, sign, m_c, lane, first, last, COLUMNS, EVEN_C)
        row_ptr = x_ptr + clamp(start - 1, H).to(tl.int64) * x_stride_h
        x_b, h_b, left_b, right_b = load_row(row_ptr, o_x, sign, m_c, lane, first, last, COLUMNS, EVEN_C)
        h_a = ()
        h_ab = ()
        t_a = ()
        for j in tl.static_range(COLUMNS):
            h_a = h_a + (tl.where(start >= 2, top[j], float("nan")),)  # above the map: it wins nothing
            h_ab = h_ab + (maximum(top[j], h_b[j]),)
            t_a = t_a + (tl.zeros([BLOCK_C, RUNS], dtype),)
        t_b = t_a
        for first_row in range(start, r_end + 2, ROWS):
            for i in tl.static_range(ROWS):
                row = first_row + i
                row_ptr = x_ptr + clamp(row, H).to(tl.int64) * x_stride_h
                x_n, h_n, left_n, right_n = load_row(row_ptr, o_x, sign, m_c, lane, first, last, COLUMNS, EVEN_C)
                # the windows around row - 1
                dls = split_columns(tl.load(dl_ptr + (row - r_begin) * pitch + o_map), COLUMNS)
                h_bn = ()
                ts_a = ()
                ts_b = ()
                ts_n = ()
                for j in tl.static_range(COLUMNS):
                    h_bn = h_bn + (maximum(h_b[j], h_n[j]),)
                    above = h_a[j] >= h_bn[j]
                    below = h_n[j] > h_ab[j]
                    ts_a = ts_a + (tl.where(above, t_a[j] + dls[j], t_a[j]),)
                    ts_b = ts_b + (tl.where(above | below, t_b[j], t_b[j] + dls[j]),)
                    ts_n = ts_n + (tl.where(below, dls[j], 0.0),)
                # row - 2 has heard from all its windows
                done = row - 2
                o_row = tl.cast(done, tl.int64)
                dy_row_ptr = None
                a_row_ptr = None
                if dy_ptr is not None:
                    dy_row_ptr = dy_ptr + o_row * dy_stride_h + o_dy
                    a_row_ptr = a_ptr + (tl.maximum(done - r_begin + 1, 0) * pitch + o_map)
                tx, t = finish(
                    collect(ts_a, left_a, right_a, i_left, i_right, COLUMNS), x_a, dy_row_ptr, a_row_ptr,
                    dx_ptr + o_row * dx_stride_h + o_dx, done, m, scale, shift, centre, weight, r_begin, r_end, RELU_U,
                )  # fmt: skip
                sum_tx += tx
                sum_t += t
                x_a, h_a, left_a, right_a, t_a = x_b, h_b, left_b, right_b, ts_b
                x_b, h_b, left_b, right_b, t_b = x_n, h_n, left_n, right_n, ts_n
                h_ab = h_bn
    return tl.sum(sum_tx, 1), tl.sum(sum_t, 1)
