"""The march of the forward, for both forms: ROWS rows of logits z from ROWS + 2 rows of x.

    z[p] = sum over c of v[c] * m[c,p] + b,       m as in `primitives`

A tile is [BLOCK_C, BLOCK_W] (channels, columns). The march keeps what it needs of the two rows above, and so loads one
new row of x per row of z. There are two ways:

    SPAN    a warp holds whole rows, COLUMNS neighbouring columns per lane. x is loaded once; the maximum is taken over
            three rows first, and then over columns, of which the outer ones come from other lanes (`column_runs`)
    else    (and in channels_last) a row is loaded three times, shifted by a column, and the maxima of three are kept

Beyond a border stands a pixel that is in the same window and so changes no maximum: pixels need no masks. Sums over
channels stay in registers, ROWS * COLUMNS of them per lane, and are added up across lanes once, at the end.

Without act_u the affine map leaves the maximum: z = sum (v |scale|) * max + sum v * shift + b.
"""

import triton
import triton.language as tl

from .column_runs import join_columns, maxima3, split_columns, with_neighbours
from .primitives import aligned, clamp, load_channel, load_signed, maximum, product, relu, sign_of, widen
from .softmax import combine, finite


@triton.jit
def strip_logits(
    x_ptr,  # [G, H, W]
    scale_ptr,  # [G]
    shift_ptr,  # [G] or None
    v_ptr,  # [G]
    b,
    z_ptr,  # [H*W]
    r0,
    H,
    W,
    G,
    strides,  # of x: (c, h, w)
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    RELU_U: tl.constexpr,
    RELU_Z: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
    STATS: tl.constexpr = True,
):
    """Writes z of rows r0 .. r0 + ROWS - 1; returns (max, sum of exp) of act_z(z) over them, if STATS."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    narrow: tl.constexpr = x_ptr.dtype.element_ty  # x is compared in its own type
    # the interpreter cannot multiply bfloat16; casts to float32 and back are ones that the compiler takes out
    compare: tl.constexpr = tl.float32 if narrow == tl.bfloat16 else narrow
    m_strip = tl.full([], float("-inf"), dtype)
    s_strip = tl.full([], 0.0, dtype)
    RUNS: tl.constexpr = BLOCK_W // COLUMNS
    stride_c, stride_h, stride_w = strides
    stride_h = aligned(stride_h, COLUMNS)
    for w0 in range(0, W, BLOCK_W):
        run = w0 // COLUMNS + tl.arange(0, RUNS)
        col = w0 + tl.arange(0, BLOCK_W)
        inside = tl.minimum(col // COLUMNS, W // COLUMNS - 1) * COLUMNS + col % COLUMNS  # in the last run, if beyond
        o_col = widen(tl.max_contiguous(tl.multiple_of(inside, COLUMNS), COLUMNS), WIDE)[None, :] * stride_w
        if not SPAN:
            o_left = widen(clamp(col - 1, W), WIDE)[None, :] * stride_w
            o_right = widen(clamp(col + 1, W), WIDE)[None, :] * stride_w
        z = ()
        for _ in tl.static_range(ROWS * COLUMNS):
            z = z + (tl.zeros([BLOCK_C, RUNS], dtype),)
        constant = tl.full([], 0.0, dtype) + b
        for c0 in range(0, G, BLOCK_C):
            o_c = c0 + tl.arange(0, BLOCK_C)
            scale = load_channel(scale_ptr, o_c, G, dtype)
            v = load_channel(v_ptr, o_c, G, dtype)
            sign = sign_of(scale).to(narrow).to(compare)[:, None]
            if RELU_U:
                gain = tl.abs(scale)[:, None]
                weight = v[:, None]
                if shift_ptr is not None:
                    shift = load_channel(shift_ptr, o_c, G, dtype)[:, None]
            else:
                weight = (v * tl.abs(scale))[:, None]
                if shift_ptr is not None:
                    constant += tl.sum(product(v, load_channel(shift_ptr, o_c, G, dtype)), 0)
            m_c = (o_c < G)[:, None]
            o_xc = widen(o_c, WIDE)[:, None] * stride_c
            o_x = o_xc + o_col
            if SPAN and COLUMNS == 1:
                # neighbours, which no run of several tells the compiler, and no alignment: as in `march_lanes`
                o_x = tl.multiple_of(tl.max_contiguous(o_x, [1, BLOCK_W]), [1, 1])
            above2 = ()  # two rows above: of columns, or their horizontal maxima
            above1 = ()
            z_next = ()
            for r in tl.static_range(ROWS + 2):
                row_ptr = x_ptr + clamp(r0 + r - 1, H).to(tl.int64) * stride_h
                if SPAN:
                    x = load_signed(row_ptr, o_x, sign, m_c, EVEN_C, "evict_last").to(narrow)
                    here = split_columns(x, COLUMNS)
                else:
                    left = load_signed(row_ptr, o_xc + o_left, sign, m_c, EVEN_C, "evict_last").to(narrow)
                    centre = load_signed(row_ptr, o_x, sign, m_c, EVEN_C, "evict_last").to(narrow)
                    right = load_signed(row_ptr, o_xc + o_right, sign, m_c, EVEN_C, "evict_last").to(narrow)
                    here = maxima3((left, centre, right), 1)
                if r >= 2:
                    m_row = ()
                    for i in tl.static_range(COLUMNS):
                        m_row = m_row + (maximum(maximum(above2[i], above1[i]), here[i]),)
                    if SPAN:
                        m_row = maxima3(with_neighbours(m_row, run, 0, W // COLUMNS - 1, COLUMNS), COLUMNS)
                    for i in tl.static_range(COLUMNS):
                        m = m_row[i].to(dtype)
                        if RELU_U:
                            m = m * gain
                            if shift_ptr is not None:
                                m += shift
                            m = relu(m, True)
                        z_next = z_next + (z[(r - 2) * COLUMNS + i] + weight * m,)
                above2 = above1
                above1 = here
            z = z_next
        m_block = tl.full([], float("-inf"), dtype)
        logits = ()
        for r in tl.static_range(ROWS):
            z_row = tl.sum(join_columns(z, r * COLUMNS, COLUMNS), 0) + constant
            m_z = (col < W) & (r0 + r < H)
            tl.store(z_ptr + (r0 + r) * W + col, z_row, mask=m_z)
            if STATS:
                logit = tl.where(m_z, relu(z_row, RELU_Z), float("-inf"))
                logits = logits + (logit,)
                m_block = tl.maximum(m_block, tl.max(logit, 0))
        if STATS:
            s_block = tl.full([], 0.0, dtype)
            for r in tl.static_range(ROWS):
                s_block += tl.sum(tl.exp(logits[r] - finite(m_block)), 0)
            m_strip, s_strip = combine(m_strip, s_strip, m_block, s_block)
    return m_strip, s_strip
