"""Forward kernels: logits by a march over rows, softmax over the map, reweighting.

    z[p]   = sum over c of v[c] * m[c,p] + b,       m as in `primitives`
    A      = softmax of act_z(z);   lse = log sum exp act_z(z)
    y[c,p] = x[c,p] + A[p] * x[c,p]

The march keeps the two rows above, and so needs one new row of x per row of z. Where a warp holds whole rows (SPAN, see
`columns`), x is loaded once, and neighbours come from other lanes, after the maximum over three rows. Else, and in
channels_last, three column-shifted rows are loaded, and their horizontal maxima kept. Beyond a border stands a pixel
that is in the same window and so changes no maximum: pixels need no masks. Without act_u the affine map leaves the
maximum: z = sum (v |scale|) * max + sum v * shift + b.
"""

import triton
import triton.language as tl

from .device.column_runs import join_columns, maxima3, split_columns, with_neighbours
from .device.primitives import (
    aligned,
    aligned_strides,
    clamp,
    load_channel,
    load_signed,
    maximum,
    mirrored_program,
    relu,
    sign_of,
    widen,
)
from .device.reweight import reweight


@triton.jit
def finite(m):
    """A maximum fit to be subtracted: 0 in place of -inf, so that exp(-inf - m) is 0."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def combine(m, s, m_i, s_i):
    """(max, sum of exp(. - max)) of two parts together."""
    m_new = tl.maximum(m, m_i)
    shift = finite(m_new)
    return m_new, s * tl.exp(m - shift) + s_i * tl.exp(m_i - shift)


@triton.jit
def strip_logits(
    x_ptr,
    scale_ptr,
    shift_ptr,
    v_ptr,
    b,
    z_ptr,  # [H*W]
    r0,
    H,
    W,
    G,
    stride_c,
    stride_h,
    stride_w,
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
                    constant += tl.sum(v * load_channel(shift_ptr, o_c, G, dtype), 0)
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
                        m_row = maxima3(with_neighbours(m_row, run, W // COLUMNS - 1, COLUMNS), COLUMNS)
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


@triton.jit
def slab_forward(
    x_ptr,  # [N, C, H, W]
    scale_ptr,  # [C]
    shift_ptr,  # [C] or None
    v_ptr,  # [C]
    b,  # of this subspace
    y_ptr,  # [N, C, H, W]
    a_ptr,  # [N, g, H*W] or None
    z_ptr,  # [N, g, H*W]
    lse_ptr,  # [N, g] or None
    stats_ptr,  # [N, g, strips, 2] or None
    H,
    W,
    G,
    num_splits,
    strips,
    strip_rows,
    chunk,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    LOGITS: tl.constexpr,
    APPLY: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RELU_U: tl.constexpr,
    RELU_Z: tl.constexpr,
    EVEN_C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    CYCLE: tl.constexpr,
    RUN: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """What a program of `forward_kernel` does for its slab; arguments as there."""
    if LOGITS:
        slab = tl.program_id(0)
        part = tl.program_id(1)
    else:
        slab, part = mirrored_program()  # x is still in L2 where the logits were computed last
    n = (slab // num_splits).to(tl.int64)
    k = slab % num_splits
    HW = H * W
    if CHANNELS_LAST:
        G = aligned(G, VEC)
    else:
        HW = aligned(HW, VEC)
    x_stride_n, x_stride_c, x_stride_w = aligned_strides(x_stride_n, x_stride_c, x_stride_w, CHANNELS_LAST, VEC)
    y_stride_n, y_stride_c, y_stride_w = aligned_strides(y_stride_n, y_stride_c, y_stride_w, CHANNELS_LAST, VEC)
    channel = k * G
    x_ptr += aligned(n * x_stride_n + channel.to(tl.int64) * x_stride_c, RUN)
    z_ptr += slab.to(tl.int64) * HW
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    m = tl.full([], float("-inf"), dtype)
    s = tl.full([], 0.0, dtype)

    if LOGITS:
        scale_ptr += channel
        v_ptr += channel
        if shift_ptr is not None:
            shift_ptr += channel
        for r0 in range(part * strip_rows, tl.minimum(part * strip_rows + strip_rows, H), ROWS):
            m_i, s_i = strip_logits(
                x_ptr, scale_ptr, shift_ptr, v_ptr, b, z_ptr, r0, H, W, G, x_stride_c, x_stride_h, x_stride_w,
                ROWS, BLOCK_C, BLOCK_W, COLUMNS, SPAN, RELU_U, RELU_Z, EVEN_C, WIDE,
            )  # fmt: skip
            m, s = combine(m, s, m_i, s_i)
        if not APPLY:
            stats_ptr += (slab.to(tl.int64) * strips + part) * 2
            tl.store(stats_ptr, m)
            tl.store(stats_ptr + 1, s)

    if APPLY:
        if LOGITS:
            p_begin = 0
            p_end = HW
            tl.debug_barrier()  # every z of the slab is written before any is read
        else:
            p_begin = part * chunk
            p_end = tl.minimum(p_begin + chunk, HW)
            for i in range(0, strips):
                i_ptr = stats_ptr + (slab.to(tl.int64) * strips + i) * 2
                m, s = combine(m, s, tl.load(i_ptr), tl.load(i_ptr + 1))
        if lse_ptr is not None:
            if part == 0:
                tl.store(lse_ptr + slab, m + tl.log(s))
        y_ptr += aligned(n * y_stride_n + channel.to(tl.int64) * y_stride_c, RUN)
        if a_ptr is not None:
            a_ptr += slab.to(tl.int64) * HW
        reweight(
            x_ptr, y_ptr, a_ptr, z_ptr, m, s, p_begin, p_end, W, G, x_stride_c, x_stride_h, x_stride_w,
            y_stride_c, y_stride_h, y_stride_w, BLOCK_P, BLOCK_K, RELU_Z, FLAT, CYCLE, RUN, WIDE,
        )  # fmt: skip


@triton.jit
def forward_kernel(
    x_ptr,  # [N, C, H, W]
    scale_ptr,  # [C]
    shift_ptr,  # [C] or None
    v_ptr,  # [C]
    b_ptr,  # [g] or None
    y_ptr,  # [N, C, H, W]
    a_ptr,  # [N, g, H*W] or None
    z_ptr,  # [N, g, H*W]
    lse_ptr,  # [N, g] or None
    stats_ptr,  # [N, g, strips, 2], (max, sum of exp) of each strip, or None in the slab regime
    H,
    W,
    G,
    num_splits,
    strips,
    strip_rows,  # rows per program of the logits launch
    chunk,  # pixels per program of the apply launch
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    LOGITS: tl.constexpr,  # this launch computes logits; with APPLY too, it is the slab regime
    APPLY: tl.constexpr,  # this launch writes y
    ROWS: tl.constexpr,  # rows of z marched over at a time
    BLOCK_C: tl.constexpr,  # tile of the march: channels and columns
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,  # neighbouring columns that one lane holds; divides W and stride_h
    SPAN: tl.constexpr,  # a tile spans a row, and a warp the tile
    BLOCK_P: tl.constexpr,  # tile of the flat sweep: pixels and channels
    BLOCK_K: tl.constexpr,
    RELU_U: tl.constexpr,
    RELU_Z: tl.constexpr,
    EVEN_C: tl.constexpr,  # BLOCK_C divides G
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,  # one stride serves all pixels of a map
    CYCLE: tl.constexpr,  # channels after which runs of RUN elements begin at the same pixels; or both 1
    RUN: tl.constexpr,  # divides where slabs begin
    VEC: tl.constexpr,  # strides, and H*W (G in channels_last), are multiples of it
    WIDE: tl.constexpr,  # offsets inside a slab need int64
):
    """Grid (N * num_splits, 1) in the slab regime; else (N * num_splits, strips), then (N * num_splits, chunks)."""
    b = tl.full([], 0.0, z_ptr.dtype.element_ty)
    if LOGITS:
        if b_ptr is not None:
            b = tl.load(b_ptr + tl.program_id(0) % num_splits).to(b.dtype)
    slab_forward(
        x_ptr, scale_ptr, shift_ptr, v_ptr, b, y_ptr, a_ptr, z_ptr, lse_ptr, stats_ptr,
        H, W, G, num_splits, strips, strip_rows, chunk, x_stride_n, x_stride_c, x_stride_h, x_stride_w,
        y_stride_n, y_stride_c, y_stride_h, y_stride_w, LOGITS, APPLY, ROWS, BLOCK_C, BLOCK_W, COLUMNS, SPAN,
        BLOCK_P, BLOCK_K, RELU_U, RELU_Z, EVEN_C, CHANNELS_LAST, FLAT, CYCLE, RUN, VEC, WIDE,
    )  # fmt: skip
