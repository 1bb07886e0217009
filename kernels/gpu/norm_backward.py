"""The backward of the form with BatchNorm on the statistics of this batch. Serves `norm_backend.norm_backward`.

zhat = (z - mean2) * rstd2, zn = gain * z + offset, A = exp(act_z(zn) - lse), u = scale * (x - mean) + beta1; M is the
number of values per channel, in all processes. Sums over subspaces of all images are marked "all". The rest is as in
`backward`.

    dl     = A * (dA - S) * [zn > 0 or no ReLU]
    dz     = gain * (dl - all dl / M - zhat * (all dl * zhat) / M)                     the pointwise norm
    dgamma2 = all dl * zhat,    dbeta2 = all dl
    t      = dz, scattered as in `backward`;   du = v * t
    S1     = all du,    S2 = all du * (x - mean)                                       the depthwise norm
    dx     = D * (1 + A) + scale * du - scale * S1 / M - scale * (dw * rstd)^2 * S2 / M * (x - mean)
    dgamma1 = S2 * dw * rstd,    dbeta1 = S1,    d(dw) = gamma1 * S2 * eps1 * rstd^3
    dv     = scale * all t * (x - mean) + beta1 * all t

A sum over all images is needed twice before dx, so there are three launches:

    norm_reduce_kernel     dA and five sums, a program per chunk of pixels of a slab; from them follow S and the
                           sums of dl and dl * zhat                                     device/softmax_backward.py
    norm_march_kernel      dz, then the march, a program per strip of rows of a slab, or over a whole small map as in
                           `backward`; it leaves scale * du in dx
    norm_complete_kernel   completes dx, a program per chunk of pixels of a slab

A norm with given statistics is an affine map: the depthwise one then needs no third launch, the pointwise one no sums.
Without act_z the softmax does not see a constant, and the sum of dl is exactly 0.
"""

import triton
import triton.language as tl

from .backward import input_gradient
from .device.primitives import aligned, load_channel, mirrored_program, pixel_offset, relu, widen
from .device.slab import slab_of, slab_place
from .device.softmax_backward import attention_gradient, chunk_sums, image_sums, logit_gradient
from .device.whole_map import map_input_gradient, norm_map_logit_gradient


@triton.jit
def norm_reduce_kernel(
    dy_ptr,  # [N, C, H, W] or None
    d_attention_ptr,  # [N, g, H*W] or None
    x_ptr,  # [N, C, H, W]
    z_ptr,  # [N, g, H*W]
    lse_ptr,  # [N, g]
    second_ptr,  # [6, g]: gain, offset, mean2, rstd2, variance, M
    da_ptr,  # [N, g, H*W]
    sums_ptr,  # [g, 5, N, chunks]
    H,
    W,
    G,
    num_splits,
    images,
    chunks,
    chunk,  # pixels per program
    dy_stride_n,
    dy_stride_c,
    dy_stride_h,
    dy_stride_w,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    BLOCK_P: tl.constexpr,  # tile: pixels and channels
    BLOCK_K: tl.constexpr,
    RELU_Z: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,  # one stride serves all pixels of a map of x
    FLAT_DY: tl.constexpr,  # likewise of dy
    VEC: tl.constexpr,  # strides of x, and H*W (G in channels_last), are multiples of it
    VEC_DY: tl.constexpr,  # likewise of dy
    SAME: tl.constexpr,  # x, dy and dx have the same strides
    WIDE: tl.constexpr,  # offsets inside a slab need int64
):
    """First pass, grid (N * num_splits, chunks): dA and the five sums."""
    slab = tl.program_id(0)
    part = tl.program_id(1)
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC)
    o_dy, dy_strides = slab_of(n, channel, dy_stride_n, dy_stride_c, dy_stride_h, dy_stride_w, CHANNELS_LAST, VEC_DY)
    if SAME:
        o_dy, dy_strides = o_x, x_strides
    x_ptr += o_x
    if dy_ptr is not None:
        dy_ptr += o_dy
    if d_attention_ptr is not None:
        d_attention_ptr += slab.to(tl.int64) * HW
    z_ptr += slab.to(tl.int64) * HW
    da_ptr += slab.to(tl.int64) * HW
    lse = tl.load(lse_ptr + slab)
    gain = tl.load(second_ptr + k)
    offset = tl.load(second_ptr + num_splits + k)
    mean = tl.load(second_ptr + 2 * num_splits + k)
    rstd = tl.load(second_ptr + 3 * num_splits + k)
    p_begin = part * chunk
    p_end = tl.minimum(p_begin + chunk, HW)
    attention_gradient(
        dy_ptr, d_attention_ptr, x_ptr, z_ptr, None, da_ptr, p_begin, p_end, W, G,
        dy_strides, x_strides, BLOCK_P, BLOCK_K, RELU_Z, FLAT, FLAT_DY, WIDE,
    )  # fmt: skip
    tl.debug_barrier()  # dA is written before it is read
    sums_ptr += (k.to(tl.int64) * 5 * images + n) * chunks + part
    chunk_sums(z_ptr, da_ptr, lse, gain, offset, mean, rstd, sums_ptr, images * chunks, p_begin, p_end, BLOCK_P, RELU_Z)


@triton.jit
def norm_march_kernel(
    dy_ptr,  # [N, C, H, W]; None where a third pass completes dx
    x_ptr,  # [N, C, H, W]
    scale_ptr,  # [C]
    shift_ptr,  # [C] or None: beta1
    centre_ptr,  # [C]: the mean of x, or None where the depthwise norm is a given affine map
    v_ptr,  # [C]
    z_ptr,  # [N, g, H*W]
    lse_ptr,  # [N, g]
    second_ptr,  # [6, g]: gain, offset, mean2, rstd2, variance, M
    da_ptr,  # [N, g, H*W]
    sums_ptr,  # [g, 5, N, chunks]
    summed_ptr,  # [2, g]: the sums of dl and of dl * zhat over all processes, or None where there is one
    dgamma2_ptr,  # [g] or None
    dbeta2_ptr,  # [g] or None
    dx_ptr,  # [N, C, H, W]
    partials_ptr,  # [N, strips, width]: S2 [C], or dscale; S1 [C], or dshift where shift is given; dv [C]
    scratch_ptr,  # [N, g, strips, 2, strip_rows + 4, pitch]: dz, and A if dy is given, bordered: `maxpool_backward`;
    # None where a tile is a whole map
    H,
    W,
    C,
    G,
    num_splits,
    images,
    strips,
    strip_rows,  # rows per program
    chunks,
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
    BLOCK_C: tl.constexpr,  # tile of the march, as in `backward_kernel`
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALO: tl.constexpr,
    LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr,  # pixels of a tile of dz
    BLOCK_N: tl.constexpr,  # tile of the sums: images and chunks
    BLOCK_I: tl.constexpr,
    RELU_U: tl.constexpr,
    RELU_Z: tl.constexpr,
    BATCH_Z: tl.constexpr,  # the pointwise norm uses the statistics of this batch
    SUM_IMAGES: tl.constexpr,  # the sums over all images are needed
    EVEN_C: tl.constexpr,  # BLOCK_C divides G
    CHANNELS_LAST: tl.constexpr,
    VEC: tl.constexpr,  # strides of x and dx, and H*W (G in channels_last), are multiples of it
    VEC_DY: tl.constexpr,  # likewise of dy
    SAME: tl.constexpr,  # x, dy and dx have the same strides
    WIDE: tl.constexpr,  # offsets inside a slab need int64
    MAP_H: tl.constexpr,  # as in `backward_kernel`, and so the next
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    LANE: tl.constexpr,
):
    """Second pass, grid (N * num_splits, strips): dgamma2, dbeta2, partial sums, dx or in its place scale * du."""
    WHOLE: tl.constexpr = MAP_H > 0 and LANE == 0
    RUN: tl.constexpr = 1 if CHANNELS_LAST else COLUMNS
    slab, part = mirrored_program()  # x is still in L2 where the first pass ended; the third begins where this one ends
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC, RUN)
    o_dy, dy_strides = slab_of(
        n, channel, dy_stride_n, dy_stride_c, dy_stride_h, dy_stride_w, CHANNELS_LAST, VEC_DY, RUN
    )
    # with VEC, else the stores of dx would have a layout of their own, and barriers in the march
    o_dx, dx_strides = slab_of(n, channel, dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w, CHANNELS_LAST, VEC, RUN)
    if SAME:
        o_dy, dy_strides = o_x, x_strides
        o_dx, dx_strides = o_x, x_strides
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    sums_ptr += k.to(tl.int64) * 5 * images * chunks
    mean_dl = tl.full([], 0.0, dtype)
    mean_dl_zhat = mean_dl
    if SUM_IMAGES:
        dl, dl_zhat = image_sums(sums_ptr, images, chunks, BLOCK_N, BLOCK_I, RELU_Z)
        if (n == 0) & (part == 0):
            if dgamma2_ptr is not None:
                tl.store(dgamma2_ptr + k, dl_zhat.to(dgamma2_ptr.dtype.element_ty))
            if dbeta2_ptr is not None:
                tl.store(dbeta2_ptr + k, dl.to(dbeta2_ptr.dtype.element_ty))
        if BATCH_Z:
            if summed_ptr is not None:
                dl = tl.load(summed_ptr + k)
                dl_zhat = tl.load(summed_ptr + num_splits + k)
            count = tl.load(second_ptr + 5 * num_splits + k)
            mean_dl = dl / count
            mean_dl_zhat = dl_zhat / count
    total = tl.full([], 0.0, dtype)
    for i in range(0, chunks):
        total += tl.load(sums_ptr + n * chunks + i)

    z_ptr += slab.to(tl.int64) * HW
    da_ptr += slab.to(tl.int64) * HW
    lse = tl.load(lse_ptr + slab)
    gain = tl.load(second_ptr + k)
    offset = tl.load(second_ptr + num_splits + k)
    batch = None
    if BATCH_Z:
        batch = (
            tl.load(second_ptr + 2 * num_splits + k), tl.load(second_ptr + 3 * num_splits + k), mean_dl, mean_dl_zhat,
        )  # fmt: skip
    x_ptr += o_x
    if dy_ptr is not None:
        dy_ptr += o_dy
    dx_ptr += o_dx
    scale_ptr += channel
    v_ptr += channel
    partials_ptr += (n * strips + part) * width + channel
    dv_ptr = partials_ptr + (width - C)
    dshift_ptr = None
    if shift_ptr is not None:
        shift_ptr += channel
        dshift_ptr = partials_ptr + C
    if centre_ptr is not None:
        centre_ptr += channel
        dshift_ptr = partials_ptr + C
    if WHOLE:
        attention, dzs = norm_map_logit_gradient(
            da_ptr, z_ptr, lse, total, gain, offset, batch, MAP_H, MAP_W, BLOCK_C, BLOCK_W, RELU_Z
        )
        map_input_gradient(
            dy_ptr, x_ptr, scale_ptr, shift_ptr, centre_ptr, v_ptr, attention, dzs, dx_ptr,
            dv_ptr, partials_ptr, dshift_ptr, G, MAP_H, MAP_W, PIXEL, BLOCK_C, BLOCK_W, RELU_U, EVEN_C,
        )  # fmt: skip
    else:
        r_begin = part * strip_rows
        r_end = tl.minimum(r_begin + strip_rows, H)
        pitch = aligned(pitch, RUN)
        dz_ptr = scratch_ptr + (slab.to(tl.int64) * strips + part) * (2 * (strip_rows + 4)) * pitch
        a_ptr = None
        if dy_ptr is not None:
            a_ptr = dz_ptr + (strip_rows + 4) * pitch
        if MAP_H:
            pitch = MAP_W + 2
        logit_gradient(
            z_ptr, da_ptr, lse, total, a_ptr, dz_ptr, r_begin, r_end, H, W, pitch, LEFT, BLOCK_P, RELU_Z,
            gain, offset, batch,
        )  # fmt: skip
        tl.debug_barrier()  # A and dz are written before they are read
        input_gradient(
            dy_ptr, x_ptr, scale_ptr, shift_ptr, centre_ptr, v_ptr, a_ptr, dz_ptr, dx_ptr,
            dv_ptr, partials_ptr, dshift_ptr, r_begin, r_end, H, W, G, pitch, dy_strides, x_strides, dx_strides,
            BLOCK_C, BLOCK_W, COLUMNS, HALO, RELU_U, EVEN_C, CHANNELS_LAST, PIXEL, WIDE, MAP_H, MAP_W, LANE,
        )  # fmt: skip


@triton.jit
def norm_complete_kernel(
    dy_ptr,  # [N, C, H, W] or None
    x_ptr,  # [N, C, H, W]
    dw_ptr,  # [C]
    gamma1_ptr,  # [C]
    z_ptr,  # [N, g, H*W]
    lse_ptr,  # [N, g]
    first_ptr,  # [5, C]: scale, mean, rstd, variance, M
    second_ptr,  # [6, g]: gain, offset, ...
    sums_ptr,  # [3, C]: S2, S1, dv of this process
    summed_ptr,  # [2, C]: S2, S1 of all processes
    dx_ptr,  # [N, C, H, W], holds scale * du
    ddw_ptr,  # [C]
    dgamma1_ptr,  # [C]
    dbeta1_ptr,  # [C] or None
    dv_ptr,  # [C]
    H,
    W,
    C,
    G,
    num_splits,
    chunk,  # pixels per program
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
    EPS_1: tl.constexpr,  # an argument would have 32 bits
    BLOCK_P: tl.constexpr,  # tile: pixels and channels
    BLOCK_K: tl.constexpr,
    RELU_Z: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,  # one stride serves all pixels of a map of x and of dx
    FLAT_DY: tl.constexpr,  # likewise of dy
    VEC: tl.constexpr,  # strides of x and dx, and H*W (G in channels_last), are multiples of it
    VEC_DY: tl.constexpr,  # likewise of dy
    SAME: tl.constexpr,  # x, dy and dx have the same strides
    WIDE: tl.constexpr,  # offsets inside a slab need int64
):
    """Third pass, grid (N * num_splits, chunks): dx, and the gradients of the depthwise half's parameters and of v."""
    slab = tl.program_id(0)
    part = tl.program_id(1)
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC)
    o_dy, dy_strides = slab_of(n, channel, dy_stride_n, dy_stride_c, dy_stride_h, dy_stride_w, CHANNELS_LAST, VEC_DY)
    o_dx, dx_strides = slab_of(n, channel, dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w, CHANNELS_LAST, VEC)
    if SAME:
        o_dy, dy_strides = o_x, x_strides
        o_dx, dx_strides = o_x, x_strides
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    x_ptr += o_x
    dx_ptr += o_dx
    z_ptr += slab.to(tl.int64) * HW
    lse = tl.load(lse_ptr + slab)
    gain = tl.load(second_ptr + k)
    offset = tl.load(second_ptr + num_splits + k)
    if dy_ptr is not None:
        dy_ptr += o_dy
    first_ptr += channel
    sums_ptr += channel
    summed_ptr += channel
    count = tl.load(first_ptr + 4 * C)
    p_begin = part * chunk
    p_end = tl.minimum(p_begin + chunk, HW)
    for c0 in range(0, G, BLOCK_K):
        c = c0 + tl.arange(0, BLOCK_K)
        m_c = c < G
        scale = load_channel(first_ptr, c, G, dtype)
        mean = load_channel(first_ptr + C, c, G, dtype)[:, None]
        rstd = load_channel(first_ptr + 2 * C, c, G, dtype)
        dw = load_channel(dw_ptr + channel, c, G, dtype)
        if (n == 0) & (part == 0):
            s2 = load_channel(sums_ptr, c, G, dtype)
            gamma1 = load_channel(gamma1_ptr + channel, c, G, dtype)
            ddw = gamma1 * s2 * EPS_1 * (rstd * rstd * rstd)
            tl.store(ddw_ptr + channel + c, ddw.to(ddw_ptr.dtype.element_ty), mask=m_c)
            tl.store(dgamma1_ptr + channel + c, (s2 * (dw * rstd)).to(dgamma1_ptr.dtype.element_ty), mask=m_c)
            if dbeta1_ptr is not None:
                s1 = load_channel(sums_ptr + C, c, G, dtype)
                tl.store(dbeta1_ptr + channel + c, s1.to(dbeta1_ptr.dtype.element_ty), mask=m_c)
            dv = load_channel(sums_ptr + 2 * C, c, G, dtype)
            tl.store(dv_ptr + channel + c, dv.to(dv_ptr.dtype.element_ty), mask=m_c)
        dw_rstd = dw * rstd
        k0 = (scale * (load_channel(summed_ptr + C, c, G, dtype) / count))[:, None]
        k1 = (scale * dw_rstd * dw_rstd * (load_channel(summed_ptr, c, G, dtype) / count))[:, None]
        o_c = widen(c, WIDE)[:, None]
        for p0 in range(p_begin, p_end, BLOCK_P):
            p = p0 + tl.arange(0, BLOCK_P)
            m_p = p < p_end
            m_x = m_c[:, None] & m_p[None, :]
            o_px = pixel_offset(widen(p, WIDE), W, x_strides, FLAT)[None, :]
            o_pdx = pixel_offset(widen(p, WIDE), W, dx_strides, FLAT)[None, :]
            x = tl.load(x_ptr + (o_c * x_strides[0] + o_px), mask=m_x, other=0.0).to(dtype)
            o_tile = o_c * dx_strides[0] + o_pdx
            dx = tl.load(dx_ptr + o_tile, mask=m_x, other=0.0).to(dtype)
            dx = dx - k0 - k1 * (x - mean)
            if dy_ptr is not None:
                o_pd = pixel_offset(widen(p, WIDE), W, dy_strides, FLAT_DY)[None, :]
                dy = tl.load(dy_ptr + (o_c * dy_strides[0] + o_pd), mask=m_x, other=0.0).to(dtype)
                z = tl.load(z_ptr + p, mask=m_p, other=0.0)
                a = tl.exp(relu(gain * z + offset, RELU_Z) - lse)[None, :]
                dx += (1 + a) * dy  # A belongs to a pixel, so this is one instruction an element
            tl.store(dx_ptr + o_tile, dx.to(dx_ptr.dtype.element_ty), mask=m_x)
