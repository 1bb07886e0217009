"""Moments of numbers: their count n, mean, and M2 = sum of squared deviations from it. The variance is M2 / n.

`moments_kernel` serves `norm_backend.moments` and is the first launch of `norm_backend.norm_forward`. The other two
launches use the helpers.

    one more number x    d = x - mean;   mean += d / n;   M2 += d * (x - mean)                              (Welford)
    several parts        mean = mean_0 + sum n_i (mean_i - mean_0) / n
                         M2   = sum M2_i + sum n_i (mean_i - mean)^2                                          (Chan)

Large numbers whose difference is small are never subtracted: a mean of 1000 costs no digit of a variance of 1, and M2
of equal numbers is exactly 0. Each lane is a part of its own and sees its numbers in a fixed order.
"""

import triton
import triton.language as tl

from .primitives import aligned, aligned_strides, pixel_offset, product, widen


@triton.jit
def absorb(mean, m2, x, n, m_x):
    """(mean, M2) of n - 1 numbers and x; as they are where m_x is false."""
    # the quotient correctly rounded, so that a first number is its own mean
    share = tl.div_rn(1.0, n.to(tl.float32)) if mean.dtype == tl.float32 else 1.0 / n.to(mean.dtype)
    d = tl.where(m_x, x - mean, 0.0)
    mean += d * share
    return mean, m2 + d * (x - mean)


@triton.jit
def together(count, mean, m2):
    """(count, mean, M2) of all parts along axis 1; 0 where a part is empty."""
    n = tl.sum(count, 1)
    mean_0 = tl.sum(tl.where(tl.arange(0, mean.shape[1])[None, :] == 0, mean, 0.0), 1)
    mean_all = mean_0 + tl.sum(product(count, mean - mean_0[:, None]), 1) / n
    d = mean - mean_all[:, None]
    return n, mean_all, tl.sum(m2 + count * (d * d), 1)


@triton.jit
def map_moments(
    z_ptr,  # [H*W]
    p_begin,
    p_end,
    BLOCK_Z: tl.constexpr,
):
    """(count, mean, M2), each [1], of pixels p_begin .. p_end - 1 of a map."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    lane = tl.arange(0, BLOCK_Z)[None, :]
    mean = tl.zeros([1, BLOCK_Z], dtype)
    m2 = tl.zeros([1, BLOCK_Z], dtype)
    count = tl.zeros([1, BLOCK_Z], dtype)
    n = tl.full([], 0, tl.int32)
    for p0 in range(p_begin, p_end, BLOCK_Z):
        p = p0 + lane
        m_p = p < p_end
        n += 1
        mean, m2 = absorb(mean, m2, tl.load(z_ptr + p, mask=m_p, other=0.0), n, m_p)
        count += tl.where(m_p, 1.0, 0.0)
    return together(count, mean, m2)


@triton.jit
def combine_moments(
    moments_ptr,  # [parts, 3, C]
    c,  # [BLOCK_M]
    m_c,
    parts,
    C,
    BLOCK_PARTS: tl.constexpr,
):
    """(count, mean, M2), each [BLOCK_M], of channels c over all parts; a part may be empty."""
    dtype: tl.constexpr = moments_ptr.dtype.element_ty
    count = tl.zeros([c.shape[0], BLOCK_PARTS], dtype)
    mean = count
    m2 = count
    for i0 in range(0, parts, BLOCK_PARTS):
        i = i0 + tl.arange(0, BLOCK_PARTS)
        m_i = m_c[:, None] & (i < parts)[None, :]
        i_ptr = moments_ptr + (i.to(tl.int64)[None, :] * 3 * C + c[:, None])
        n_i = tl.load(i_ptr, mask=m_i, other=0.0)
        mean_i = tl.load(i_ptr + C, mask=m_i, other=0.0)
        m2_i = tl.load(i_ptr + 2 * C, mask=m_i, other=0.0)
        d = tl.where(n_i > 0, mean_i - mean, 0.0)
        step = tl.where(count == 0, d, d * (n_i / tl.maximum(count + n_i, 1.0)))
        mean += step
        m2 += tl.where(n_i > 0, m2_i, 0.0) + d * step * count
        count += n_i
    # channels beyond the last are given a number, so that they divide by no 0
    return together(tl.where(m_c[:, None], count, 1.0), mean, m2)


@triton.jit
def moments_kernel(
    x_ptr,  # [N, C, H, W]
    moments_ptr,  # [parts, 3, C]
    N,
    C,
    H,
    W,
    part_pixels,  # pixels per program, of the N * H * W of a channel; a multiple of BLOCK_P
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    BLOCK_C: tl.constexpr,  # tile: channels and pixels
    BLOCK_P: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,  # one stride serves all pixels of a map
    VEC: tl.constexpr,  # strides, and H*W (C in channels_last), are multiples of it
    WIDE: tl.constexpr,  # offsets inside an image, or numbers of pixels, need int64
):
    """Grid (blocks of channels, parts)."""
    part = tl.program_id(1)
    dtype: tl.constexpr = moments_ptr.dtype.element_ty
    HW = H * W
    if CHANNELS_LAST:
        C = aligned(C, VEC)
    else:
        HW = aligned(HW, VEC)
    x_stride_n, x_stride_c, x_stride_w = aligned_strides(x_stride_n, x_stride_c, x_stride_w, CHANNELS_LAST, VEC)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < C
    o_c = widen(c, WIDE)[:, None] * x_stride_c
    pixels = widen(N, WIDE) * HW
    part_pixels = aligned(part_pixels, BLOCK_P)
    begin = widen(part, WIDE) * part_pixels
    end = tl.minimum(begin + part_pixels, pixels)
    mean = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    m2 = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    count = tl.zeros([1, BLOCK_P], dtype)
    n = tl.full([], 0, tl.int32)
    for i0 in range(begin, end, BLOCK_P):
        i = widen(i0 + tl.arange(0, BLOCK_P), WIDE)  # image * H * W + pixel
        m_i = (i < end)[None, :]
        o_i = (i // HW).to(tl.int64) * x_stride_n + pixel_offset(i % HW, W, (x_stride_c, x_stride_h, x_stride_w), FLAT)
        x = tl.load(x_ptr + (o_c + o_i[None, :]), mask=m_c[:, None] & m_i, other=0.0).to(dtype)
        n += 1
        mean, m2 = absorb(mean, m2, x, n, m_i)
        count += tl.where(m_i, 1.0, 0.0)
    n_all, mean_all, m2_all = together(count, mean, m2)
    moments_ptr += part.to(tl.int64) * 3 * C + c
    tl.store(moments_ptr, tl.zeros([BLOCK_C], dtype) + n_all, mask=m_c)
    tl.store(moments_ptr + C, mean_all, mask=m_c)
    tl.store(moments_ptr + 2 * C, m2_all, mask=m_c)
