"""The march of the backward in NCHW: lanes are columns, and each holds the one window around its column.

What a row has won in the window around a column goes to that column or to one of its two neighbours, which fetch it
(`tl.gather`). Tiles [BLOCK_C, BLOCK_W] (channels, columns). A row longer than a tile is cut into tiles that overlap by
two columns (HALO): the first and the last column of a tile are there for their windows alone.
"""

import triton
import triton.language as tl

from .maxpool_backward import finish, winning_rows
from .primitives import clamp, load_signed, maximum, widen


@triton.jit
def load_row(row_ptr, o_left, o_x, o_right, inside, sign, m_c, EVEN_C: tl.constexpr):
    """Of one row: the maximum of each window's three columns; whether the first to reach it is the left, the right.

    Beyond a border stands the nearest pixel inside. It wins nothing: to the left where it is not `inside`, to the right
    because the column itself comes first.
    """
    left = load_signed(row_ptr, o_left, sign, m_c, EVEN_C, "")
    x = load_signed(row_ptr, o_x, sign, m_c, EVEN_C, "")
    right = load_signed(row_ptr, o_right, sign, m_c, EVEN_C, "")
    to_left = inside & (left >= maximum(x, right))
    to_right = right > maximum(left, x)
    return maximum(maximum(left, right), x), to_left, to_right


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
    border: tl.constexpr = 1 if HALO else 0
    m_c = (c < G)[:, None]
    o_c = widen(c, WIDE)[:, None]
    lane = tl.arange(0, BLOCK_W)[None, :]
    # In a ring: what passes its seam is 0 without HALO, the map's borders being there, and with HALO not used.
    to_the_left = ((lane + 1) % BLOCK_W) + tl.zeros([BLOCK_C, BLOCK_W], tl.int32)
    to_the_right = ((lane + (BLOCK_W - 1)) % BLOCK_W) + tl.zeros([BLOCK_C, BLOCK_W], tl.int32)
    sum_tx = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    sum_t = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for w0 in range(0, W, BLOCK_W - 2 * border):
        col = w0 - border + lane
        inside = col > 0
        # Clamping hides from the compiler that these are neighbours along a row, and Triton 3.6 would lay lanes along
        # channels, 32 lines of memory per access. So they are promised to be; and since that is not true beyond a
        # border, nor of every stride, no alignment is admitted: every access is of one element, and nothing else
        # follows from the promise (tests/kernels/gpu/access_widths.py). Longer accesses of dy and dx alone would have a
        # layout of their own.
        here = widen(clamp(col, W), WIDE)
        o_left = o_c * x_stride_c + widen(clamp(col - 1, W), WIDE) * x_stride_w
        o_x = o_c * x_stride_c + here * x_stride_w
        o_right = o_c * x_stride_c + widen(clamp(col + 1, W), WIDE) * x_stride_w
        o_dy = o_c * dy_stride_c + here * dy_stride_w
        o_dx = o_c * dx_stride_c + here * dx_stride_w
        o_left = tl.multiple_of(tl.max_contiguous(o_left, [1, BLOCK_W]), [1, 1])
        o_x = tl.multiple_of(tl.max_contiguous(o_x, [1, BLOCK_W]), [1, 1])
        o_right = tl.multiple_of(tl.max_contiguous(o_right, [1, BLOCK_W]), [1, 1])
        o_dy = tl.multiple_of(tl.max_contiguous(o_dy, [1, BLOCK_W]), [1, 1])
        o_dx = tl.multiple_of(tl.max_contiguous(o_dx, [1, BLOCK_W]), [1, 1])
        m = (lane >= border) & (lane < BLOCK_W - border) & (col < W)
        if not EVEN_C:
            m = m & m_c
        start = tl.maximum(r_begin, 1)
        row_ptr = x_ptr + clamp(start - 2, H).to(tl.int64) * x_stride_h
        h_a, left_a, right_a = load_row(row_ptr, o_left, o_x, o_right, inside, sign, m_c, EVEN_C)
        row_ptr = x_ptr + clamp(start - 1, H).to(tl.int64) * x_stride_h
        h_b, left_b, right_b = load_row(row_ptr, o_left, o_x, o_right, inside, sign, m_c, EVEN_C)
        t_a = tl.zeros([BLOCK_C, BLOCK_W], dtype)
        t_b = t_a
        for first_row in range(start, r_end + 2, ROWS):
            for i in tl.static_range(ROWS):
                row = first_row + i
                row_ptr = x_ptr + clamp(row, H).to(tl.int64) * x_stride_h
                h_n, left_n, right_n = load_row(row_ptr, o_left, o_x, o_right, inside, sign, m_c, EVEN_C)
                # the windows around row - 1
                dl = tl.load(dl_ptr + (row - r_begin) * pitch + (col + 1))
                above, below = winning_rows(h_a, h_b, h_n, row >= 2)
                t_a = tl.where(above, t_a + dl, t_a)
                t_b = tl.where(above | below, t_b, t_b + dl)
                t_n = tl.where(below, dl, 0.0)
                # row - 2 has heard from all its windows
                done = row - 2
                o_a = tl.maximum(done - r_begin + 1, 0) * pitch
                t = tl.where(left_a | right_a, 0.0, t_a)
                t += tl.gather(tl.where(left_a, t_a, 0.0), to_the_left, 1)
                t += tl.gather(tl.where(right_a, t_a, 0.0), to_the_right, 1)
                tx, t = finish(
                    t, dy_ptr, x_ptr, a_ptr, o_a + (col + 1), dx_ptr, done, m, o_x, o_dy, o_dx,
                    scale, shift, centre, weight, r_begin, r_end, H, dy_stride_h, x_stride_h, dx_stride_h, RELU_U,
                )  # fmt: skip
                sum_tx += tx
                sum_t += t
                h_a, left_a, right_a, t_a = h_b, left_b, right_b, t_b
                h_b, left_b, right_b, t_b = h_n, left_n, right_n, t_n
    return tl.sum(sum_tx, 1), tl.sum(sum_t, 1)
