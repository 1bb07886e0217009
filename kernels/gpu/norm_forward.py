"""The forward of the form with BatchNorm on the statistics of this batch. Serves `norm_backend.norm_forward`.

    mu[c], var[c]     of x over all images and pixels;   r1 = 1 / sqrt(dw^2 var + eps1)
    scale             = gamma1 * dw * r1,                shift = beta1 - scale * mu
    z[p]              = sum over c of pw[c] * m[c,p],    m as in `primitives`
    mean2[k], var2[k] of z over all images and pixels;   r2 = 1 / sqrt(var2 + eps2)
    gain              = gamma2 * r2,                     offset = beta2 - gain * mean2
    A                 = softmax of act_z(gain * z + offset);   lse = log sum exp act_z(gain * z + offset)
    y[c,p]            = x[c,p] + A[p] * x[c,p]

A bias before a norm cancels; only the running mean sees it. Each of the two statistics is of all images, so there are
three launches:

    moments_kernel       partial moments of x                                             device/moments.py
    norm_logits_kernel   scale and shift; z, a program per strip of rows of a slab        device/march_logits.py
                         partial moments of z
    norm_apply_kernel    gain and offset; the softmax, of which every program reads the
                         whole map; y, a program per chunk of pixels of a slab            device/reweight.py

A program begins by combining the partial moments of its own subspace. All programs of a subspace do so in the same
order, and so get the same bits. Lanes are then channels (BLOCK_M) and parts (BLOCK_PARTS).
"""

import triton
import triton.language as tl

from .device.march_logits import strip_logits
from .device.moments import combine_moments, map_moments
from .device.primitives import mirrored_program
from .device.reweight import reweight
from .device.slab import slab_of, slab_place
from .device.softmax import map_softmax


@triton.jit
def update_running(mean_ptr, var_ptr, bias_ptr, o, m_o, factor, count, mean, m2, momentum):
    """Running statistics at o of factor * x + bias, given the moments of x; bias_ptr may be None."""
    mean = factor * mean
    if bias_ptr is not None:
        mean += tl.load(bias_ptr + o, mask=m_o, other=0.0).to(mean.dtype)
    var = factor * factor * (m2 / tl.maximum(count - 1, 1.0))
    old_mean = tl.load(mean_ptr + o, mask=m_o, other=0.0).to(mean.dtype)
    old_var = tl.load(var_ptr + o, mask=m_o, other=0.0).to(mean.dtype)
    new_mean = (1 - momentum) * old_mean + momentum * mean
    new_var = (1 - momentum) * old_var + momentum * var
    tl.store(mean_ptr + o, new_mean.to(mean_ptr.dtype.element_ty), mask=m_o)
    tl.store(var_ptr + o, new_var.to(var_ptr.dtype.element_ty), mask=m_o)


@triton.jit
def float_pair(high, low, dtype: tl.constexpr):
    """The number that the launcher passed as two float32, the only type in which Triton passes floats."""
    return tl.full([], 0.0, dtype) + high + low


@triton.jit
def batch_affine(
    moments_ptr,  # [parts, 3, C]
    dw_ptr,  # [C]
    gamma_ptr,  # [C]
    beta_ptr,  # [C] or None
    first_ptr,  # [5, C]: scale, mean, rstd, variance, count
    shift_ptr,  # [C]
    running_mean_ptr,  # [C] or None
    running_var_ptr,  # [C] or None
    running_bias_ptr,  # [C] or None
    momentum,
    channel,  # the subspace's first
    parts,
    C,
    G,
    writes,  # whether this program is the one that writes what only the caller reads
    EPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Writes scale and shift of a subspace's channels, from the moments of x."""
    dtype: tl.constexpr = moments_ptr.dtype.element_ty
    for c0 in range(0, G, BLOCK_M):
        o_c = c0 + tl.arange(0, BLOCK_M)
        m_c = o_c < G
        c = channel + o_c
        count, mean, m2 = combine_moments(moments_ptr, c, m_c, parts, C, BLOCK_PARTS)
        dw = tl.load(dw_ptr + c, mask=m_c, other=0.0).to(dtype)
        var = m2 / count
        rstd = 1 / tl.sqrt(dw * dw * var + EPS)
        scale = tl.load(gamma_ptr + c, mask=m_c, other=0.0).to(dtype) * dw * rstd
        shift = -scale * mean
        if beta_ptr is not None:
            shift += tl.load(beta_ptr + c, mask=m_c, other=0.0).to(dtype)
        tl.store(first_ptr + c, scale, mask=m_c)
        tl.store(shift_ptr + c, shift, mask=m_c)
        if writes:
            tl.store(first_ptr + C + c, mean, mask=m_c)
            tl.store(first_ptr + 2 * C + c, rstd, mask=m_c)
            tl.store(first_ptr + 3 * C + c, var, mask=m_c)
            tl.store(first_ptr + 4 * C + c, count, mask=m_c)
            if running_mean_ptr is not None:
                update_running(
                    running_mean_ptr, running_var_ptr, running_bias_ptr, c, m_c, dw, count, mean, m2, momentum
                )


@triton.jit
def norm_logits_kernel(
    x_ptr,  # [N, C, H, W]
    moments_ptr,  # [parts, 3, C] of x; None: scale and shift are dw and beta
    dw_ptr,  # [C]
    gamma_ptr,  # [C], or None with moments
    beta_ptr,  # [C] or None
    pw_ptr,  # [C]
    first_ptr,  # [5, C], see `batch_affine`; or None with moments
    shift_ptr,  # [C], scratch, or None with moments
    running_mean_ptr,  # [C] or None
    running_var_ptr,  # [C] or None
    running_bias_ptr,  # [C] or None
    z_ptr,  # [N, g, H*W]
    z_moments_ptr,  # [N, strips, 3, g], or None: not asked for
    momentum_high,
    momentum_low,
    parts,
    H,
    W,
    G,
    num_splits,
    strips,
    strip_rows,  # rows per program
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,  # rows of z marched over at a time
    BLOCK_C: tl.constexpr,  # tile of the march: channels and columns
    BLOCK_W: tl.constexpr,
    COLUMNS: tl.constexpr,  # neighbouring columns that one lane holds; divides W and stride_h
    SPAN: tl.constexpr,  # a tile spans a row, and a warp the tile
    BLOCK_M: tl.constexpr,  # tile of the partial moments: channels and parts
    BLOCK_PARTS: tl.constexpr,
    BLOCK_Z: tl.constexpr,  # tile of a map
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,  # BLOCK_C divides G
    CHANNELS_LAST: tl.constexpr,
    VEC: tl.constexpr,  # strides, and H*W (G in channels_last), are multiples of it
    WIDE: tl.constexpr,  # offsets inside a slab need int64
):
    """z and its moments; grid (N * num_splits, strips)."""
    slab, part = mirrored_program()  # x is still in L2 where its moments were computed last
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC)
    x_ptr += o_x
    z_ptr += slab.to(tl.int64) * HW
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    scale_ptr = dw_ptr
    if moments_ptr is not None:
        batch_affine(
            moments_ptr, dw_ptr, gamma_ptr, beta_ptr, first_ptr, shift_ptr,
            running_mean_ptr, running_var_ptr, running_bias_ptr, float_pair(momentum_high, momentum_low, dtype),
            channel, parts, num_splits * G, G, (n == 0) & (part == 0), EPS, BLOCK_M, BLOCK_PARTS,
        )  # fmt: skip
        tl.debug_barrier()  # scale and shift are written before they are read
        scale_ptr = first_ptr
    else:
        shift_ptr = beta_ptr
    scale_ptr += channel
    pw_ptr += channel
    if shift_ptr is not None:
        shift_ptr += channel
    r_begin = part * strip_rows
    r_end = tl.minimum(r_begin + strip_rows, H)
    b = tl.full([], 0.0, dtype)
    for r0 in range(r_begin, r_end, ROWS):
        strip_logits(
            x_ptr, scale_ptr, shift_ptr, pw_ptr, b, z_ptr, r0, H, W, G, x_strides,
            ROWS, BLOCK_C, BLOCK_W, COLUMNS, SPAN, RELU_U, False, EVEN_C, WIDE, STATS=False,
        )  # fmt: skip
    if z_moments_ptr is not None:
        tl.debug_barrier()  # every z of the strip is written before any is read
        count, mean, m2 = map_moments(z_ptr, r_begin * W, r_end * W, BLOCK_Z)
        o_k = k + tl.arange(0, 1)
        z_moments_ptr += (n * strips + part) * 3 * num_splits
        tl.store(z_moments_ptr + o_k, count)
        tl.store(z_moments_ptr + num_splits + o_k, mean)
        tl.store(z_moments_ptr + 2 * num_splits + o_k, m2)


@triton.jit
def norm_apply_kernel(
    x_ptr,  # [N, C, H, W]
    z_ptr,  # [N, g, H*W]
    z_moments_ptr,  # [parts, 3, g]; None: gain is 1, and offset is beta
    gamma_ptr,  # [g], or None with z_moments
    beta_ptr,  # [g] or None
    y_ptr,  # [N, C, H, W]
    a_ptr,  # [N, g, H*W] or None
    lse_ptr,  # [N, g]
    second_ptr,  # [6, g]: gain, offset, mean, rstd, variance, count
    running_mean_ptr,  # [g] or None
    running_var_ptr,  # [g] or None
    running_bias_ptr,  # [g] or None
    momentum_high,
    momentum_low,
    parts,
    H,
    W,
    G,
    num_splits,
    chunk,  # pixels per program
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,  # tile of the flat sweep: pixels and channels
    BLOCK_K: tl.constexpr,
    BLOCK_Z: tl.constexpr,  # tile of a map, and of the partial moments
    RELU_Z: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,  # one stride serves all pixels of a map
    CYCLE: tl.constexpr,  # channels after which runs of RUN elements begin at the same pixels; or both 1
    RUN: tl.constexpr,  # divides where slabs begin
    VEC: tl.constexpr,  # strides, and H*W (G in channels_last), are multiples of it
    WIDE: tl.constexpr,  # offsets inside a slab need int64
):
    """y, A and lse; grid (N * num_splits, chunks)."""
    slab = tl.program_id(0)  # the logits were computed in the opposite order: x is still in L2 here
    part = tl.program_id(1)
    n, k, HW, G = slab_place(slab, num_splits, H, W, G, CHANNELS_LAST, VEC)
    channel = k * G
    o_x, x_strides = slab_of(n, channel, x_stride_n, x_stride_c, x_stride_h, x_stride_w, CHANNELS_LAST, VEC, RUN)
    o_y, y_strides = slab_of(n, channel, y_stride_n, y_stride_c, y_stride_h, y_stride_w, CHANNELS_LAST, VEC, RUN)
    z_ptr += slab.to(tl.int64) * HW
    dtype: tl.constexpr = z_ptr.dtype.element_ty

    o_k = k + tl.arange(0, 1)
    m_k = o_k >= 0
    offset = tl.zeros([1], dtype)
    if beta_ptr is not None:
        offset += tl.load(beta_ptr + o_k).to(dtype)
    gain = tl.full([1], 1.0, dtype)
    rstd = gain
    count = tl.zeros([1], dtype)
    mean = count
    m2 = count
    var = count
    if z_moments_ptr is not None:
        count, mean, m2 = combine_moments(z_moments_ptr, o_k, m_k, parts, num_splits, BLOCK_Z)
        var = m2 / count
        rstd = 1 / tl.sqrt(var + EPS)
        gain = tl.load(gamma_ptr + o_k).to(dtype) * rstd
        offset -= gain * mean
    if (n == 0) & (part == 0):
        tl.store(second_ptr + o_k, gain)
        tl.store(second_ptr + num_splits + o_k, offset)
        tl.store(second_ptr + 2 * num_splits + o_k, mean)
        tl.store(second_ptr + 3 * num_splits + o_k, rstd)
        tl.store(second_ptr + 4 * num_splits + o_k, var)
        tl.store(second_ptr + 5 * num_splits + o_k, count)
        if running_mean_ptr is not None:
            update_running(
                running_mean_ptr, running_var_ptr, running_bias_ptr, o_k, m_k, 1.0, count, mean, m2,
                float_pair(momentum_high, momentum_low, dtype),
            )  # fmt: skip
    gain, offset = tl.sum(gain, 0), tl.sum(offset, 0)  # of tiles of one element, with which each lane had a whole map
    m, s = map_softmax(z_ptr, gain, offset, HW, BLOCK_Z, RELU_Z)
    if part == 0:
        tl.store(lse_ptr + slab, m + tl.log(s))
    if a_ptr is not None:
        a_ptr += slab.to(tl.int64) * HW
    p_begin = part * chunk
    reweight(
        x_ptr + o_x, y_ptr + o_y, a_ptr, z_ptr, m, s, p_begin, tl.minimum(p_begin + chunk, HW), W, G,
        x_strides, y_strides, BLOCK_P, BLOCK_K, RELU_Z, FLAT, CYCLE, RUN, WIDE, gain, offset,
    )  # fmt: skip
