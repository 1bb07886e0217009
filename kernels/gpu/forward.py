"""The forward of the general form, and of the form with fixed BatchNorms, which it folds into the same parameters.

    z[p]   = sum over c of v[c] * m[c,p] + b,       m as in `primitives`
    A      = softmax of act_z(z);   lse = log sum exp act_z(z)
    y[c,p] = x[c,p] + A[p] * x[c,p]

`forward_kernel` serves `backend.forward`, `folded_kernel` serves `norm_backend.folded_forward`. A program belongs to a
slab and does two things for it:

    LOGITS   the march over its rows: z, and (max, sum of exp) of it      device/march_logits.py
    APPLY    the sweep over its pixels: y, and A where asked              device/reweight.py

In the slab regime one launch does both, and the sweep finds x in cache. In the split regime the first launch does
LOGITS, a program per strip of rows, and the second APPLY, a program per chunk of pixels, which first combines the
(max, sum of exp) of all strips.
"""

import triton
import triton.language as tl

from .device.march_logits import strip_logits
from .device.primitives import mirrored_program
from .device.reweight import reweight
from .device.slab import slab_of, slab_place
from .device.softmax import combine
from .device.whole_map import map_forward


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
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
):
    """What a program of `forward_kernel` does for its slab; arguments as there."""
    if LOGITS:
        slab = tl.program_id(0)
        part = tl.program_id(1)
    else:
        slab, part = mirrored_program()  # x is still in L2 where the logits were computed last
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC, RUN)
    o_y, y_strides = slab_of(n, channel, y_stride_n, y_stride_c, y_stride_h, y_stride_w, CHANNELS_LAST, VEC, RUN)
    x_ptr += o_x
    y_ptr += o_y
    z_ptr += slab.to(tl.int64) * HW
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    m = tl.full([], float("-inf"), dtype)
    s = tl.full([], 0.0, dtype)

    if MAP_H:
        if shift_ptr is not None:
            shift_ptr += channel
        if a_ptr is not None:
            a_ptr += slab.to(tl.int64) * HW
        if lse_ptr is not None:
            lse_ptr += slab
        map_forward(
            x_ptr, scale_ptr + channel, shift_ptr, v_ptr + channel, b, y_ptr, a_ptr, z_ptr, lse_ptr, G,
            MAP_H, MAP_W, PIXEL, BLOCK_C, BLOCK_W, RELU_U, RELU_Z, EVEN_C,
        )  # fmt: skip
    elif LOGITS:
        scale_ptr += channel
        v_ptr += channel
        if shift_ptr is not None:
            shift_ptr += channel
        for r0 in range(part * strip_rows, tl.minimum(part * strip_rows + strip_rows, H), ROWS):
            m_i, s_i = strip_logits(
                x_ptr, scale_ptr, shift_ptr, v_ptr, b, z_ptr, r0, H, W, G, x_strides,
                ROWS, BLOCK_C, BLOCK_W, COLUMNS, SPAN, RELU_U, RELU_Z, EVEN_C, WIDE,
            )  # fmt: skip
            m, s = combine(m, s, m_i, s_i)
        if not APPLY:
            stats_ptr += (slab.to(tl.int64) * strips + part) * 2
            tl.store(stats_ptr, m)
            tl.store(stats_ptr + 1, s)

    if APPLY and not MAP_H:
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
        if a_ptr is not None:
            a_ptr += slab.to(tl.int64) * HW
        reweight(
            x_ptr, y_ptr, a_ptr, z_ptr, m, s, p_begin, p_end, W, G, x_strides, y_strides,
            BLOCK_P, BLOCK_K, RELU_Z, FLAT, CYCLE, RUN, WIDE,
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
    MAP_H: tl.constexpr,  # H and W, where the tile is the whole map, or 0
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,  # elements from one of its pixels to the next: 1, or in channels_last C
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
        BLOCK_P, BLOCK_K, RELU_U, RELU_Z, EVEN_C, CHANNELS_LAST, FLAT, CYCLE, RUN, VEC, WIDE, MAP_H, MAP_W, PIXEL,
    )  # fmt: skip


@triton.jit
def folded_kernel(
    x_ptr,  # [N, C, H, W]
    dw_ptr,  # [C]; None: x itself is pooled
    dw_bias_ptr,  # [C] or None
    gamma1_ptr,  # [C]; None: no norm, nor the three below
    beta1_ptr,  # [C]
    mean1_ptr,  # [C]
    var1_ptr,  # [C]
    pw_ptr,  # [C]
    pw_bias_ptr,  # [g] or None
    gamma2_ptr,  # [g]
    beta2_ptr,  # [g]
    mean2_ptr,  # [g]
    var2_ptr,  # [g]
    folded_ptr,  # [3, C], scratch: scale, shift, v
    y_ptr,  # the rest as in `forward_kernel`
    a_ptr,
    z_ptr,
    stats_ptr,
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
    EPS1: tl.constexpr,
    EPS2: tl.constexpr,
    BLOCK_M: tl.constexpr,  # channels of a tile of the parameters
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
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
):
    """`forward_kernel`, its parameters made of those of both norms; the same grid.

    scale = gamma1 * dw / sqrt(var1 + eps1),   shift = gamma1 * (dw_bias - mean1) / sqrt(var1 + eps1) + beta1
    v     = gamma2 * pw / sqrt(var2 + eps2),   b     = gamma2 * (pw_bias - mean2) / sqrt(var2 + eps2) + beta2
    """
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    b = tl.full([], 0.0, dtype)
    C = num_splits * G
    shift_ptr = folded_ptr + C
    if LOGITS:
        k = tl.program_id(0) % num_splits
        factor2 = tl.load(gamma2_ptr + k).to(dtype) / tl.sqrt(tl.load(var2_ptr + k).to(dtype) + EPS2)
        if pw_bias_ptr is not None:
            b += tl.load(pw_bias_ptr + k).to(dtype)
        b = factor2 * (b - tl.load(mean2_ptr + k).to(dtype)) + tl.load(beta2_ptr + k).to(dtype)
        for c0 in range(0, G, BLOCK_M):
            o_c = c0 + tl.arange(0, BLOCK_M)
            m_c = o_c < G
            c = k * G + o_c
            scale = tl.full([BLOCK_M], 1.0, dtype)
            shift = tl.zeros([BLOCK_M], dtype)
            if dw_ptr is not None:
                scale = tl.load(dw_ptr + c, mask=m_c, other=0.0).to(dtype)
                if dw_bias_ptr is not None:
                    shift = tl.load(dw_bias_ptr + c, mask=m_c, other=0.0).to(dtype)
                if gamma1_ptr is not None:
                    var1 = tl.load(var1_ptr + c, mask=m_c, other=1.0).to(dtype)
                    factor1 = tl.load(gamma1_ptr + c, mask=m_c, other=0.0).to(dtype) / tl.sqrt(var1 + EPS1)
                    scale *= factor1
                    shift = factor1 * (shift - tl.load(mean1_ptr + c, mask=m_c, other=0.0).to(dtype))
                    shift += tl.load(beta1_ptr + c, mask=m_c, other=0.0).to(dtype)
            tl.store(folded_ptr + c, scale, mask=m_c)
            tl.store(shift_ptr + c, shift, mask=m_c)
            tl.store(shift_ptr + C + c, factor2 * tl.load(pw_ptr + c, mask=m_c, other=0.0).to(dtype), mask=m_c)
        tl.debug_barrier()  # written before they are read; every program of a subspace writes the same bits
    slab_forward(
        x_ptr, folded_ptr, shift_ptr, shift_ptr + C, b, y_ptr, a_ptr, z_ptr, None, stats_ptr,
        H, W, G, num_splits, strips, strip_rows, chunk, x_stride_n, x_stride_c, x_stride_h, x_stride_w,
        y_stride_n, y_stride_c, y_stride_h, y_stride_w, LOGITS, APPLY, ROWS, BLOCK_C, BLOCK_W, COLUMNS, SPAN,
        BLOCK_P, BLOCK_K, RELU_U, RELU_Z, EVEN_C, CHANNELS_LAST, FLAT, CYCLE, RUN, VEC, WIDE, MAP_H, MAP_W, PIXEL,
    )  # fmt: skip
