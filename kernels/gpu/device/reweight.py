"""The second sweep of the forward over x, for both forms: y[c,p] = x[c,p] + A[p] * x[c,p].

A tile is [BLOCK_K, BLOCK_P] (channels, pixels); A of its pixels serves all channels.

Where the channels of a map are contiguous and H*W is odd, say, runs of 16 bytes begin at another pixel in every
channel. But after CYCLE channels they begin at the same pixels again. So a contiguous slab [G, H*W] is swept as
[G / CYCLE, runs, RUN], and A of a run's pixels serves all G / CYCLE of them.
"""

import triton
import triton.language as tl

from .primitives import aligned, pixel_offset, widen
from .softmax import attention


@triton.jit
def weighted(x, a):
    """(1 + a) * x."""
    a = tl.where(a == 0, 1.2e-38, a)  # (1 + 0) * inf is inf, but inf + 0 * inf NaN; a finite x sees no difference
    return x + a * x


@triton.jit
def reweighted(x_ptr, y_ptr, a, m_x, dtype: tl.constexpr):
    """Writes y at these addresses. x is read for the last time; y is what the next layer reads, and may stay in L2."""
    x = tl.load(x_ptr, mask=m_x, other=0.0, eviction_policy="evict_first").to(dtype)
    tl.store(y_ptr, weighted(x, a).to(y_ptr.dtype.element_ty), mask=m_x)


@triton.jit
def reweight(
    x_ptr,
    y_ptr,
    a_ptr,  # [H*W] or None
    z_ptr,  # [H*W]
    m,
    s,
    p_begin,
    p_end,
    W,
    G,
    x_strides,  # (c, h, w)
    y_strides,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RELU_Z: tl.constexpr,
    FLAT: tl.constexpr,
    CYCLE: tl.constexpr,  # more than 1: pixels p_begin .. p_end - 1 are all of the map
    RUN: tl.constexpr,
    WIDE: tl.constexpr,
    gain=None,  # with an offset: the softmax is of act_z(gain * z + offset)
    offset=None,
):
    """Writes y, and A if asked, of pixels p_begin .. p_end - 1, given the softmax's (max, sum of exp)."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    if CYCLE == 1 or a_ptr is not None:
        for p0 in range(p_begin, p_end, BLOCK_P):
            p = p0 + tl.arange(0, BLOCK_P)
            m_p = p < p_end
            a = attention(z_ptr, p, m_p, m, s, RELU_Z, gain, offset)
            if a_ptr is not None:
                tl.store(a_ptr + p, a, mask=m_p)
            if CYCLE == 1:
                o_px = pixel_offset(widen(p, WIDE), W, x_strides, FLAT)[None, :]
                o_py = pixel_offset(widen(p, WIDE), W, y_strides, FLAT)[None, :]
                for c0 in range(0, G, BLOCK_K):
                    c = c0 + tl.arange(0, BLOCK_K)
                    m_x = (c < G)[:, None] & m_p[None, :]
                    o_c = widen(c, WIDE)[:, None]
                    o_x = o_c * x_strides[0] + o_px
                    o_y = o_c * y_strides[0] + o_py
                    reweighted(x_ptr + o_x, y_ptr + o_y, a[None, :], m_x, dtype)
    if CYCLE > 1:
        GROUPS: tl.constexpr = max(BLOCK_K // RUN, 1)
        length = aligned(CYCLE * p_end, RUN)  # of a cycle
        lane = tl.arange(0, RUN)[None, :]
        for r0 in range(0, length, BLOCK_P * RUN):
            o_r = r0 + tl.arange(0, BLOCK_P) * RUN
            m_r = o_r < length
            a = attention(z_ptr, (o_r[:, None] + lane) % p_end, m_r[:, None] & (lane >= 0), m, s, RELU_Z, gain, offset)
            for c0 in range(0, G // CYCLE, GROUPS):
                c = c0 + tl.arange(0, GROUPS)
                m_x = ((c < G // CYCLE)[:, None] & m_r[None, :])[:, :, None] & (lane >= 0)[None, :, :]
                o = (c[:, None] * length + o_r[None, :])[:, :, None] + lane[None, :, :]
                reweighted(x_ptr + o, y_ptr + o, a[None, :, :], m_x, dtype)
