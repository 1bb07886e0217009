"""The backward of the general form, and `input_gradient`, which the form with BatchNorm shares.

`backward_kernel` serves `backend.backward`. D = dy; t is dl, scattered to the pixels that won their windows; [.] is 1
or 0.

    dA[p]   = sum over c of D[c,p] * x[c,p], plus the gradient that arrives at A itself
    S       = sum over p of A[p] * dA[p]
    dl[p]   = A[p] * (dA[p] - S) * [z[p] > 0 or no ReLU]             softmax and act_z
    t[c,q]  = sum of dl[p] over the windows p of which q is the argmax, * [u[c,q] > 0 or no ReLU]
    dx      = D * (1 + A) + scale * v * t
    dscale  = v * sum t * x,   dshift = v * sum t,   dv = scale * sum t * x + shift * sum t,   db = sum dl

The last line needs no maxima: at the argmax u is scale * x + shift, so sum_p dl * m = sum_q t * u.

A program belongs to a slab and does two things for it:

    REDUCE   a sweep over its pixels: dA and S                              device/softmax_backward.py
    MARCH    A and dl, into a scratch of its own, then the march: dx and    device/march_nchw.py,
             this program's part of the parameters' gradients               device/march_channels_last.py
    both     of a map so small that it fits a tile, without a scratch       device/whole_map.py
    MARCH    over whole rows of a small map in channels_last                device/whole_rows.py

In the slab regime one launch does both. In the split regime the first launch does REDUCE, a program per chunk of
pixels, and the second MARCH, a program per strip of rows, which first adds up the S of all chunks.

The argmax is recomputed. A pixel q wins window p when it is the first in its row to equal the row's maximum, and its
row the first to equal the window's: the first maximum in row-major order, PyTorch's rule. A march takes one new row a
step. It holds for each window the maxima of its last two rows and what dl they have won. A row that has heard from all
its windows hands that on to the columns that reached its maxima. u, m, the argmax and t are never written to memory.
"""

import triton
import triton.language as tl

from .device.march_channels_last import march_columns
from .device.march_nchw import march_lanes
from .device.primitives import aligned, load_channel, mirrored_program, sign_of
from .device.slab import slab_of, slab_place
from .device.softmax_backward import attention_gradient, logit_gradient
from .device.whole_map import map_input_gradient, map_logit_gradient
from .device.whole_rows import rows_input_gradient

# Rows of one turn of the march. A window spans three. So after three rows every value is in its old register again, and
# nothing is moved: 94 instructions per element in place of 117 (float16 channels_last, sm_90, Triton 3.7.1).
MARCH_ROWS = tl.constexpr(3)


@triton.jit
def input_gradient(
    dy_ptr,  # or None
    x_ptr,
    scale_ptr,
    shift_ptr,  # or None
    centre_ptr,  # or None; else x stands for x - centre in u and in the sums
    v_ptr,
    a_ptr,  # A and dl with a border; A is not read without dy
    dl_ptr,
    dx_ptr,
    dv_ptr,  # [G], this program's partial sums
    dscale_ptr,  # [G]
    dshift_ptr,  # [G] or None
    r_begin,
    r_end,
    H,
    W,
    G,
    pitch,
    dy_strides,  # (c, h, w)
    x_strides,
    dx_strides,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALO: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PIXEL: tl.constexpr,  # as in `march_columns`
    WIDE: tl.constexpr,
    MAP_H: tl.constexpr,  # as in `backward_kernel`
    MAP_W: tl.constexpr,
    LANE: tl.constexpr,
):
    """Writes dx of rows r_begin .. r_end - 1, and what they contribute to dv, dscale and dshift."""
    if MAP_H:
        rows_input_gradient(
            dy_ptr, x_ptr, scale_ptr, shift_ptr, centre_ptr, v_ptr, a_ptr, dl_ptr, dx_ptr,
            dv_ptr, dscale_ptr, dshift_ptr, G, MAP_H, MAP_W, PIXEL, LANE, BLOCK_C, RELU_U, EVEN_C,
        )  # fmt: skip
    else:
        dtype: tl.constexpr = dl_ptr.dtype.element_ty
        # x is compared in its own type, but bfloat16 in float32, to which its maximum is promoted anyway. In NCHW all
        # are compared in the type of the map, which takes fewer conversions
        narrow: tl.constexpr = CHANNELS_LAST and x_ptr.dtype.element_ty != tl.bfloat16
        compare: tl.constexpr = x_ptr.dtype.element_ty if narrow else dtype
        for c0 in range(0, G, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            m_c = c < G
            scale = load_channel(scale_ptr, c, G, dtype)
            v = load_channel(v_ptr, c, G, dtype)
            shift = None
            shift_c = None
            centre = None
            if shift_ptr is not None:
                shift = load_channel(shift_ptr, c, G, dtype)
                shift_c = shift[:, None]
            if centre_ptr is not None:
                centre = load_channel(centre_ptr, c, G, dtype)[:, None]
            sign = sign_of(scale).to(compare)[:, None]
            weight = (scale * v)[:, None]
            if CHANNELS_LAST:
                sum_tx, sum_t = march_columns(
                    dy_ptr, x_ptr, a_ptr, dl_ptr, dx_ptr, c, sign, scale[:, None], shift_c, centre, weight,
                    r_begin, r_end, H, W, G, pitch, dy_strides, x_strides, dx_strides,
                    MARCH_ROWS, BLOCK_C, BLOCK_W, COLUMNS, HALO, PIXEL, RELU_U, EVEN_C, WIDE,
                )  # fmt: skip
            else:
                sum_tx, sum_t = march_lanes(
                    dy_ptr, x_ptr, a_ptr, dl_ptr, dx_ptr, c, sign, scale[:, None], shift_c, centre, weight,
                    r_begin, r_end, H, W, G, pitch, dy_strides, x_strides, dx_strides,
                    MARCH_ROWS, BLOCK_C, BLOCK_W, COLUMNS, HALO, RELU_U, EVEN_C, WIDE,
                )  # fmt: skip
            dv = scale * sum_tx
            if dshift_ptr is not None:
                if shift_ptr is not None:
                    dv += shift * sum_t
                tl.store(dshift_ptr + c, v * sum_t, mask=m_c)
            tl.store(dv_ptr + c, dv, mask=m_c)
            tl.store(dscale_ptr + c, v * sum_tx, mask=m_c)


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
    da_ptr,  # [N, g, H*W], scratch, or None, and so the next, where a tile is a whole map
    scratch_ptr,  # [N, g, strips, 2, strip_rows + 4, pitch]: A and dl of a strip, with a border: `maxpool_backward`
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
    pitch,
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
    BLOCK_C: tl.constexpr,  # tile of the march: channels, and lanes along a row
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,  # neighbouring columns that one lane holds; in NCHW it divides W and strides of n, c and h
    HALO: tl.constexpr,  # columns that a tile knows on either side of those that it writes; 0: it is the whole row
    LEFT: tl.constexpr,  # columns of A's and dl's border before the map's first
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
    SAME: tl.constexpr,  # x, dy and dx have the same strides
    WIDE: tl.constexpr,  # offsets inside a slab need int64
    MAP_H: tl.constexpr,  # H and W of a small map, whose rows are written out, or 0
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,  # elements from one of its pixels to the next: 1, or in channels_last C, as in `march_columns`
    LANE: tl.constexpr,  # channels of a lane that holds whole rows of it; 0: the tile is the whole map
):
    """Grid (N * num_splits, 1) in the slab regime; else (N * num_splits, chunks), then (N * num_splits, strips)."""
    WHOLE: tl.constexpr = MAP_H > 0 and LANE == 0
    RUN: tl.constexpr = 1 if CHANNELS_LAST else COLUMNS
    if REDUCE:
        slab = tl.program_id(0)
        part = tl.program_id(1)
    else:
        slab, part = mirrored_program()  # x and dy are still in L2 where dA was computed last
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC, RUN)
    o_dy, dy_strides = slab_of(
        n, channel, dy_stride_n, dy_stride_c, dy_stride_h, dy_stride_w, CHANNELS_LAST, VEC_DY, RUN
    )
    if SAME:
        o_dy, dy_strides = o_x, x_strides
    x_ptr += o_x
    if dy_ptr is not None:
        dy_ptr += o_dy
    z_ptr += slab.to(tl.int64) * HW
    if da_ptr is not None:
        da_ptr += slab.to(tl.int64) * HW
    lse = tl.load(lse_ptr + slab)
    if d_attention_ptr is not None:
        d_attention_ptr += slab.to(tl.int64) * HW
    total = tl.full([], 0.0, z_ptr.dtype.element_ty)

    if REDUCE and not WHOLE:
        if MARCH:
            p_begin = 0
            p_end = HW
        else:
            p_begin = part * chunk
            p_end = tl.minimum(p_begin + chunk, HW)
        total = attention_gradient(
            dy_ptr, d_attention_ptr, x_ptr, z_ptr, lse, da_ptr, p_begin, p_end, W, G,
            dy_strides, x_strides, BLOCK_P, BLOCK_K, RELU_Z, FLAT, FLAT_DY, WIDE,
        )  # fmt: skip
        if not MARCH:
            tl.store(totals_ptr + slab.to(tl.int64) * chunks + part, total)

    if MARCH:
        o_dx, dx_strides = slab_of(
            n, channel, dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w, CHANNELS_LAST, 1, RUN
        )
        if SAME:
            o_dx, dx_strides = o_x, x_strides
        dx_ptr += o_dx
        scale_ptr += channel
        v_ptr += channel
        partials_ptr += (n * strips + part) * width
        dv_ptr = partials_ptr + channel
        dscale_ptr = dv_ptr + C
        dshift_ptr = None
        if shift_ptr is not None:
            shift_ptr += channel
            dshift_ptr = dv_ptr + 2 * C
        if WHOLE:
            attention, dls, db = map_logit_gradient(
                dy_ptr, d_attention_ptr, x_ptr, z_ptr, lse, G, MAP_H, MAP_W, PIXEL, BLOCK_C, BLOCK_W, RELU_Z, EVEN_C
            )
            map_input_gradient(
                dy_ptr, x_ptr, scale_ptr, shift_ptr, None, v_ptr, attention, dls, dx_ptr,
                dv_ptr, dscale_ptr, dshift_ptr, G, MAP_H, MAP_W, PIXEL, BLOCK_C, BLOCK_W, RELU_U, EVEN_C,
            )  # fmt: skip
        else:
            if REDUCE:
                tl.debug_barrier()  # every dA of the slab is written before any is read
            else:
                for i in range(0, chunks):
                    total += tl.load(totals_ptr + slab.to(tl.int64) * chunks + i)
            r_begin = part * strip_rows
            r_end = tl.minimum(r_begin + strip_rows, H)
            pitch = aligned(pitch, RUN)
            a_ptr = scratch_ptr + (slab.to(tl.int64) * strips + part) * (2 * (strip_rows + 4)) * pitch
            dl_ptr = a_ptr + (strip_rows + 4) * pitch
            if MAP_H:
                pitch = MAP_W + 2
            db = logit_gradient(
                z_ptr, da_ptr, lse, total, a_ptr, dl_ptr, r_begin, r_end, H, W, pitch, LEFT, BLOCK_P, RELU_Z
            )
            tl.debug_barrier()  # A and dl are written before they are read
            input_gradient(
                dy_ptr, x_ptr, scale_ptr, shift_ptr, None, v_ptr, a_ptr, dl_ptr, dx_ptr,
                dv_ptr, dscale_ptr, dshift_ptr, r_begin, r_end, H, W, G, pitch, dy_strides, x_strides, dx_strides,
                BLOCK_C, BLOCK_W, COLUMNS, HALO, RELU_U, EVEN_C, CHANNELS_LAST, PIXEL, WIDE, MAP_H, MAP_W, LANE,
            )  # fmt: skip
        if RELU_Z:
            tl.store(partials_ptr + width - num_splits + k, db)
