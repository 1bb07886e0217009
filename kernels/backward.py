"""Backward kernels. D = dy; t is dl, scattered to the pixels that won their windows; [.] is 1 or 0.

    dA[p]   = sum over c of D[c,p] * x[c,p], plus the gradient that arrives at A itself
    S       = sum over p of A[p] * dA[p]
    dl[p]   = A[p] * (dA[p] - S) * [z[p] > 0 or no ReLU]             softmax and act_z
    t[c,q]  = sum of dl[p] over the windows p of which q is the argmax, * [u[c,q] > 0 or no ReLU]
    dx      = D * (1 + A) + scale * v * t
    dscale  = v * sum t * x,   dshift = v * sum t,   dv = scale * sum t * x + shift * sum t,   db = sum dl

The last line needs no maxima: at the argmax u is scale * x + shift, so sum_p dl * m = sum_q t * u.

The argmax is recomputed. A pixel q wins window p when it is the first in its row to equal the row's maximum, and its
row the first to equal the window's: the first maximum in row-major order, PyTorch's rule. A program marches over rows
and holds, for each column, the three windows j = -1, 0, 1 to its left, around it and to its right; their maxima are
computed anew in each column, so columns exchange nothing. Not saved and not materialised: u, m, the argmax, t.
"""

import triton
import triton.language as tl

from .primitives import (
    aligned,
    aligned_strides,
    clamp,
    load_channel,
    load_signed,
    maximum,
    pixel_offset,
    relu,
    sign_of,
    widen,
)

# Rows of one turn of the march. A window spans three, so after three rows every value is in its old place again, and
# what moves from row to row changes its name, not its register: 117 to 94 instructions per element (float16
# channels_last, sm_90, Triton 3.7.1).
MARCH_ROWS = tl.constexpr(3)


@triton.jit
def attention_gradient(
    dy_ptr,  # or None
    d_attention_ptr,  # [H*W] or None
    x_ptr,
    z_ptr,  # [H*W]
    lse,
    da_ptr,  # [H*W]
    p_begin,
    p_end,
    W,
    G,
    dy_stride_c,
    dy_stride_h,
    dy_stride_w,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RELU_Z: tl.constexpr,
    FLAT: tl.constexpr,
    FLAT_DY: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Writes dA of pixels p_begin .. p_end - 1; returns the sum of A * dA over them."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    total = tl.full([], 0.0, dtype)
    for p0 in range(p_begin, p_end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        m_p = p < p_end
        da = tl.zeros([BLOCK_P], dtype)
        if dy_ptr is not None:
            o_px = pixel_offset(widen(p, WIDE), W, x_stride_h, x_stride_w, FLAT)[None, :]
            o_pd = pixel_offset(widen(p, WIDE), W, dy_stride_h, dy_stride_w, FLAT_DY)[None, :]
            products = tl.zeros([BLOCK_K, BLOCK_P], dtype)
            for c0 in range(0, G, BLOCK_K):
                c = c0 + tl.arange(0, BLOCK_K)
                m_x = (c < G)[:, None] & m_p[None, :]
                o_c = widen(c, WIDE)[:, None]
                x = tl.load(x_ptr + (o_c * x_stride_c + o_px), mask=m_x, other=0.0).to(dtype)
                dy = tl.load(dy_ptr + (o_c * dy_stride_c + o_pd), mask=m_x, other=0.0).to(dtype)
                products += dy * x
            da = tl.sum(products, 0)
        if d_attention_ptr is not None:
            da += tl.load(d_attention_ptr + p, mask=m_p, other=0.0).to(dtype)
        tl.store(da_ptr + p, da, mask=m_p)
        z = tl.load(z_ptr + p, mask=m_p, other=0.0)
        total += tl.sum(tl.where(m_p, tl.exp(relu(z, RELU_Z) - lse) * da, 0.0), 0)
    return total


@triton.jit
def logit_gradient(
    z_ptr,  # [H*W]
    da_ptr,  # [H*W]
    lse,
    total,
    a_ptr,  # [p_end - p_begin], scratch of this program
    dl_ptr,  # likewise
    p_begin,
    p_end,
    p_first,
    p_last,
    BLOCK_P: tl.constexpr,
    RELU_Z: tl.constexpr,
):
    """Writes A and dl of pixels p_begin .. p_end - 1; returns the sum of dl over pixels p_first .. p_last - 1."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    db = tl.full([], 0.0, dtype)
    for p0 in range(p_begin, p_end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        m_p = p < p_end
        z = tl.load(z_ptr + p, mask=m_p, other=0.0)
        a = tl.exp(relu(z, RELU_Z) - lse)
        dl = a * (tl.load(da_ptr + p, mask=m_p, other=0.0) - total)
        if RELU_Z:
            dl = tl.where(z <= 0, 0.0, dl)
            db += tl.sum(tl.where((p >= p_first) & (p < p_last), dl, 0.0), 0)
        tl.store(a_ptr + (p - p_begin), a, mask=m_p)
        tl.store(dl_ptr + (p - p_begin), dl, mask=m_p)
    return db


@triton.jit
def load_row(x_ptr, o_ll, o_l, o_c, o_r, o_rr, first, sign, m_c, EVEN_C: tl.constexpr):
    """Of one row: x; the maxima of the windows' rows for j = -1, 0, 1; whether this column is the first to reach each.

    Beyond a border stands the nearest pixel inside. It adds nothing to a maximum; and a tie with it is ours, which
    matters only to the left of the first column.
    """
    ll = load_signed(x_ptr, o_ll, sign, m_c, EVEN_C)
    left = load_signed(x_ptr, o_l, sign, m_c, EVEN_C)
    x = load_signed(x_ptr, o_c, sign, m_c, EVEN_C)
    right = load_signed(x_ptr, o_r, sign, m_c, EVEN_C)
    rr = load_signed(x_ptr, o_rr, sign, m_c, EVEN_C)
    before = maximum(ll, left)
    after = maximum(right, rr)
    # negated, so that a NaN wins as it does in max_pool2d
    own_l = (before >= x) == 0
    own_c = (first | ((left >= x) == 0)) & ((right > x) == 0)
    own_r = (after > x) == 0
    return maximum(before, x), maximum(maximum(left, right), x), maximum(after, x), own_l, own_c, own_r


@triton.jit
def scatter(above, here, below, dl, has_above, to_above, to_here):
    """Gives a window's dl to the first of its three rows that holds the maximum; returns the three rows' sums."""
    wins_above = has_above & (above >= maximum(here, below))
    wins_below = below > maximum(above, here)
    return (
        to_above + tl.where(wins_above, dl, 0.0),
        to_here + tl.where(wins_above | wins_below, 0.0, dl),  # here too if one is NaN: dl, then NaN, is not lost
        tl.where(wins_below, dl, 0.0),
    )


@triton.jit
def input_gradient(
    dy_ptr,  # or None
    x_ptr,
    scale_ptr,
    shift_ptr,  # or None
    centre_ptr,  # or None; else x stands for x - centre in u and in the sums
    v_ptr,
    a_ptr,  # A and dl from pixel p_begin on; A is not read without dy
    dl_ptr,
    dx_ptr,
    dv_ptr,  # [G], this program's partial sums
    dscale_ptr,  # [G]
    dshift_ptr,  # [G] or None
    p_begin,
    r_begin,
    r_end,
    H,
    W,
    G,
    dy_stride_c,
    dy_stride_h,
    dy_stride_w,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    dx_stride_c,
    dx_stride_h,
    dx_stride_w,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Writes dx of rows r_begin .. r_end - 1, and what they contribute to dv, dscale and dshift."""
    dtype: tl.constexpr = dl_ptr.dtype.element_ty
    # x is compared in its own type, but bfloat16 in float32, to which its maximum is promoted anyway
    compare: tl.constexpr = tl.float32 if x_ptr.dtype.element_ty == tl.bfloat16 else x_ptr.dtype.element_ty
    for c0 in range(0, G, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        m_c = (c < G)[:, None]
        o_c = widen(c, WIDE)[:, None]
        o_cx = o_c * x_stride_c
        scale = load_channel(scale_ptr, c, G, dtype)[:, None]
        v = load_channel(v_ptr, c, G, dtype)[:, None]
        sign = sign_of(scale).to(compare)
        weight = scale * v
        if shift_ptr is not None:
            shift = load_channel(shift_ptr, c, G, dtype)[:, None]
        if centre_ptr is not None:
            centre = load_channel(centre_ptr, c, G, dtype)[:, None]
        sum_tx = tl.zeros([BLOCK_C, BLOCK_W], dtype)
        sum_t = tl.zeros([BLOCK_C, BLOCK_W], dtype)
        for w0 in range(0, W, BLOCK_W):
            col = w0 + tl.arange(0, BLOCK_W)[None, :]
            first = col == 0
            m_l = (col >= 1) & (col <= W)
            m_w = col < W
            m_r = col < W - 1
            o_ll = o_cx + widen(clamp(col - 2, W), WIDE) * x_stride_w
            o_l = o_cx + widen(clamp(col - 1, W), WIDE) * x_stride_w
            o_x = o_cx + widen(clamp(col, W), WIDE) * x_stride_w
            o_r = o_cx + widen(clamp(col + 1, W), WIDE) * x_stride_w
            o_rr = o_cx + widen(clamp(col + 2, W), WIDE) * x_stride_w
            o_dy = o_c * dy_stride_c + widen(col, WIDE) * dy_stride_w
            o_dx = o_c * dx_stride_c + widen(col, WIDE) * dx_stride_w
            # rows a, b are the two last rows read; t_a, t_b what their windows have given them so far
            start = tl.maximum(r_begin, 1)
            row_ptr = x_ptr + clamp(start - 2, H).to(tl.int64) * x_stride_h
            a_l, a_c, a_r, a_own_l, a_own_c, a_own_r = load_row(
                row_ptr, o_ll, o_l, o_x, o_r, o_rr, first, sign, m_c, EVEN_C
            )
            row_ptr = x_ptr + clamp(start - 1, H).to(tl.int64) * x_stride_h
            b_l, b_c, b_r, b_own_l, b_own_c, b_own_r = load_row(
                row_ptr, o_ll, o_l, o_x, o_r, o_rr, first, sign, m_c, EVEN_C
            )
            ta_l = tl.zeros([BLOCK_C, BLOCK_W], dtype)
            ta_c = ta_l
            ta_r = ta_l
            tb_l = ta_l
            tb_c = ta_l
            tb_r = ta_l
            for first_row in range(start, r_end + 2, MARCH_ROWS):
                for i in tl.static_range(MARCH_ROWS):
                    row = first_row + i
                    row_ptr = x_ptr + clamp(row, H).to(tl.int64) * x_stride_h
                    n_l, n_c, n_r, n_own_l, n_own_c, n_own_r = load_row(
                        row_ptr, o_ll, o_l, o_x, o_r, o_rr, first, sign, m_c, EVEN_C
                    )
                    # the windows around row - 1
                    has_above = row >= 2
                    m_window = (row <= H) & (row <= r_end + 1)
                    o_p = (row - 1) * W + col - p_begin
                    ta_l, tb_l, tn_l = scatter(
                        a_l, b_l, n_l, tl.load(dl_ptr + o_p - 1, mask=m_window & m_l, other=0.0), has_above, ta_l, tb_l
                    )
                    ta_c, tb_c, tn_c = scatter(
                        a_c, b_c, n_c, tl.load(dl_ptr + o_p, mask=m_window & m_w, other=0.0), has_above, ta_c, tb_c
                    )
                    ta_r, tb_r, tn_r = scatter(
                        a_r, b_r, n_r, tl.load(dl_ptr + o_p + 1, mask=m_window & m_r, other=0.0), has_above, ta_r, tb_r
                    )
                    # row - 2 has heard from all its windows
                    done = row - 2
                    m_done = (done >= r_begin) & (done < r_end) & m_w
                    m_row = m_done & m_c
                    x_row = x_ptr + clamp(done, H).to(tl.int64) * x_stride_h
                    x = tl.load(x_row + o_x, mask=m_row, other=0.0).to(dtype)
                    if centre_ptr is not None:
                        x -= centre
                    t = tl.where(a_own_l, ta_l, 0.0) + tl.where(a_own_c, ta_c, 0.0) + tl.where(a_own_r, ta_r, 0.0)
                    if RELU_U:
                        u = scale * x
                        if shift_ptr is not None:
                            u += shift
                        t = tl.where(u <= 0, 0.0, t)
                    t = tl.where(m_row, t, 0.0)
                    sum_tx += t * x
                    if dshift_ptr is not None:
                        sum_t += t
                    dx = weight * t
                    if dy_ptr is not None:
                        a = tl.load(a_ptr + (o_p - W), mask=m_done, other=0.0)
                        dy_row = dy_ptr + clamp(done, H).to(tl.int64) * dy_stride_h
                        dy = tl.load(dy_row + o_dy, mask=m_row, other=0.0).to(dtype)
                        dx += dy + a * dy
                    dx_row = dx_ptr + clamp(done, H).to(tl.int64) * dx_stride_h
                    tl.store(dx_row + o_dx, dx.to(dx_ptr.dtype.element_ty), mask=m_row)
                    a_l, a_c, a_r, a_own_l, a_own_c, a_own_r = b_l, b_c, b_r, b_own_l, b_own_c, b_own_r
                    b_l, b_c, b_r, b_own_l, b_own_c, b_own_r = n_l, n_c, n_r, n_own_l, n_own_c, n_own_r
                    ta_l, ta_c, ta_r = tb_l, tb_c, tb_r
                    tb_l, tb_c, tb_r = tn_l, tn_c, tn_r
        tx = tl.sum(sum_tx, 1)[:, None]
        dv = scale * tx
        if dshift_ptr is not None:
            total_t = tl.sum(sum_t, 1)[:, None]
            if shift_ptr is not None:
                dv += shift * total_t
            tl.store(dshift_ptr + c[:, None], v * total_t, mask=m_c)
        tl.store(dv_ptr + c[:, None], dv, mask=m_c)
        tl.store(dscale_ptr + c[:, None], v * tx, mask=m_c)


@triton.jit
def backward_kernel(
    dy_ptr,  # [N, C, H, W] or None
    d_attention_ptr,  # [N, g, H*W] or None
    x_ptr,  # [N, C, H, W]
    scale_ptr,  # [C]
    shift_ptr,  # [C] or None
    v_ptr,  # [C]
    z_ptr,  # [N, g, H*W]
    lse_ptr,  # [N, g]
    dx_ptr,  # [N, C, H, W]
    partials_ptr,  # [N, strips, width]: dv [C], dscale [C], dshift [C] where shift is given, db [g] where RELU_Z
    da_ptr,  # [N, g, H*W], scratch
    scratch_ptr,  # [N, g, strips, 2, (strip_rows + 2) * W]: A and dl of a strip and the rows beside it
    totals_ptr,  # [N, g, chunks], sums of A * dA, or None in the slab regime
    H,
    W,
    C,
    G,
    num_splits,
    strips,
    strip_rows,  # rows per program of the launch that writes dx
    chunks,
    chunk,  # pixels per program of the launch that writes dA
    width,
    dy_stride_n,
    dy_stride_c,
    dy_stride_h,
    dy_stride_w,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    dx_stride_n,
    dx_stride_c,
    dx_stride_h,
    dx_stride_w,
    REDUCE: tl.constexpr,  # this launch writes dA; with MARCH too, it is the slab regime
    MARCH: tl.constexpr,  # this launch writes dx
    BLOCK_C: tl.constexpr,  # tile of the march: channels and columns
    BLOCK_W: tl.constexpr,
    BLOCK_P: tl.constexpr,  # tile of the flat sweep: pixels and channels
    BLOCK_K: tl.constexpr,
    RELU_U: tl.constexpr,
    RELU_Z: tl.constexpr,
    EVEN_C: tl.constexpr,  # BLOCK_C divides G
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,  # one stride serves all pixels of a map of x
    FLAT_DY: tl.constexpr,  # likewise of dy
    VEC: tl.constexpr,  # strides of x, and H*W (G in channels_last), are multiples of it
    VEC_DY: tl.constexpr,  # likewise of dy
    WIDE: tl.constexpr,  # offsets inside a slab need int64
):
    """Grid (N * num_splits, 1) in the slab regime; else (N * num_splits, chunks), then (N * num_splits, strips)."""
    slab = tl.program_id(0)
    part = tl.program_id(1)
    n = (slab // num_splits).to(tl.int64)
    k = slab % num_splits
    HW = H * W
    if CHANNELS_LAST:
        G = aligned(G, VEC)
    else:
        HW = aligned(HW, VEC)
    x_stride_n, x_stride_c, x_stride_w = aligned_strides(x_stride_n, x_stride_c, x_stride_w, CHANNELS_LAST, VEC)
    dy_stride_n, dy_stride_c, dy_stride_w = aligned_strides(
        dy_stride_n, dy_stride_c, dy_stride_w, CHANNELS_LAST, VEC_DY
    )
    channel = k * G
    x_ptr += n * x_stride_n + channel.to(tl.int64) * x_stride_c
    if dy_ptr is not None:
        dy_ptr += n * dy_stride_n + channel.to(tl.int64) * dy_stride_c
    z_ptr += slab.to(tl.int64) * HW
    da_ptr += slab.to(tl.int64) * HW
    lse = tl.load(lse_ptr + slab)
    total = tl.full([], 0.0, z_ptr.dtype.element_ty)

    if REDUCE:
        if MARCH:
            p_begin = 0
            p_end = HW
        else:
            p_begin = part * chunk
            p_end = tl.minimum(p_begin + chunk, HW)
        if d_attention_ptr is not None:
            d_attention_ptr += slab.to(tl.int64) * HW
        total = attention_gradient(
            dy_ptr, d_attention_ptr, x_ptr, z_ptr, lse, da_ptr, p_begin, p_end, W, G,
            dy_stride_c, dy_stride_h, dy_stride_w, x_stride_c, x_stride_h, x_stride_w,
            BLOCK_P, BLOCK_K, RELU_Z, FLAT, FLAT_DY, WIDE,
        )  # fmt: skip
        if not MARCH:
            tl.store(totals_ptr + slab.to(tl.int64) * chunks + part, total)

    if MARCH:
        if REDUCE:
            tl.debug_barrier()  # every dA of the slab is written before any is read
        else:
            for i in range(0, chunks):
                total += tl.load(totals_ptr + slab.to(tl.int64) * chunks + i)
        r_begin = part * strip_rows
        r_end = tl.minimum(r_begin + strip_rows, H)
        a_ptr = scratch_ptr + (slab.to(tl.int64) * strips + part) * (2 * (strip_rows + 2)) * W
        dl_ptr = a_ptr + (strip_rows + 2) * W
        p_begin = tl.maximum(r_begin - 1, 0) * W
        db = logit_gradient(
            z_ptr, da_ptr, lse, total, a_ptr, dl_ptr, p_begin, tl.minimum(r_end + 1, H) * W, r_begin * W, r_end * W,
            BLOCK_P, RELU_Z,
        )  # fmt: skip
        tl.debug_barrier()  # A and dl are written before they are read
        partials_ptr += (n * strips + part) * width
        if RELU_Z:
            tl.store(partials_ptr + width - num_splits + k, db)
        dv_ptr = partials_ptr + channel
        dx_ptr += n * dx_stride_n + channel.to(tl.int64) * dx_stride_c
        scale_ptr += channel
        v_ptr += channel
        if shift_ptr is not None:
            shift_ptr += channel
        dscale_ptr = dv_ptr + C
        dshift_ptr = None
        if shift_ptr is not None:
            dshift_ptr = dv_ptr + 2 * C
        input_gradient(
            dy_ptr, x_ptr, scale_ptr, shift_ptr, None, v_ptr, a_ptr, dl_ptr, dx_ptr, dv_ptr, dscale_ptr, dshift_ptr,
            p_begin, r_begin, r_end, H, W, G, dy_stride_c, dy_stride_h, dy_stride_w,
            x_stride_c, x_stride_h, x_stride_w, dx_stride_c, dx_stride_h, dx_stride_w,
            BLOCK_C, BLOCK_W, RELU_U, EVEN_C, WIDE,
        )  # fmt: skip
