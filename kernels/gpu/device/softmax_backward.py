"""From dy to dl, the gradient of the logits, for both backwards: dA of every pixel, sums over pixels, dl.

    dA[p]  = sum over c of dy[c,p] * x[c,p], plus the gradient that arrives at A itself
    S      = sum over p of A[p] * dA[p]
    dl[p]  = A[p] * (dA[p] - S) * [logit > 0 or no ReLU],      logit = z, or with BatchNorm zn = gain * z + offset
    dz     = gain * (dl - mean of dl - zhat * mean of dl * zhat),      zhat = (z - mean) * rstd

With BatchNorm the means are over all images, and each image's dl needs its own S first. So one pass writes five sums of
each chunk of pixels, from which S and both sums follow without dl ([.] is 1 where dl is not 0 by the ReLU):

    t0 = sum A * dA,    t1 = sum A * dA * [.],    t2 = sum A * [.]
    t3 = sum A * dA * [.] * zhat,    t4 = sum A * [.] * zhat
    of one image: S = t0,    sum dl = t1 - S * t2,    sum dl * zhat = t3 - S * t4

Lanes are pixels; for dA a tile is [BLOCK_K, BLOCK_P] (channels, pixels), and a program keeps one sum per element.
"""

import triton
import triton.language as tl

from .maxpool_backward import bordered
from .primitives import pixel_offset, relu, widen


@triton.jit
def attention_gradient(
    dy_ptr,  # or None
    d_attention_ptr,  # [H*W] or None
    x_ptr,
    z_ptr,  # [H*W]
    lse,  # or None: the sum is not asked for
    da_ptr,  # [H*W]
    p_begin,
    p_end,
    W,
    G,
    dy_strides,  # (c, h, w)
    x_strides,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RELU_Z: tl.constexpr,
    FLAT: tl.constexpr,
    FLAT_DY: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Writes dA of pixels p_begin .. p_end - 1; returns the sum of A * dA over them, or 0."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    total = tl.full([], 0.0, dtype)
    for p0 in range(p_begin, p_end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        m_p = p < p_end
        da = tl.zeros([BLOCK_P], dtype)
        if dy_ptr is not None:
            o_px = pixel_offset(widen(p, WIDE), W, x_strides, FLAT)[None, :]
            o_pd = pixel_offset(widen(p, WIDE), W, dy_strides, FLAT_DY)[None, :]
            products = tl.zeros([BLOCK_K, BLOCK_P], dtype)
            for c0 in range(0, G, BLOCK_K):
                c = c0 + tl.arange(0, BLOCK_K)
                m_x = (c < G)[:, None] & m_p[None, :]
                o_c = widen(c, WIDE)[:, None]
                x = tl.load(x_ptr + (o_c * x_strides[0] + o_px), mask=m_x, other=0.0).to(dtype)
                dy = tl.load(dy_ptr + (o_c * dy_strides[0] + o_pd), mask=m_x, other=0.0).to(dtype)
                products += dy * x
            da = tl.sum(products, 0)
        if d_attention_ptr is not None:
            da += tl.load(d_attention_ptr + p, mask=m_p, other=0.0).to(dtype)
        tl.store(da_ptr + p, da, mask=m_p)
        if lse is not None:
            z = tl.load(z_ptr + p, mask=m_p, other=0.0)
            total += tl.sum(tl.where(m_p, tl.exp(relu(z, RELU_Z) - lse) * da, 0.0), 0)
    return total


@triton.jit
def chunk_sums(
    z_ptr,  # [H*W]
    da_ptr,  # [H*W]
    lse,
    gain,
    offset,
    mean,
    rstd,
    sums_ptr,  # [5, N, chunks], at this image and chunk
    stride,  # N * chunks
    p_begin,
    p_end,
    BLOCK_P: tl.constexpr,
    RELU_Z: tl.constexpr,
):
    """Writes the five sums of pixels p_begin .. p_end - 1."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    t0 = tl.zeros([BLOCK_P], dtype)
    t1 = t0
    t2 = t0
    t3 = t0
    t4 = t0
    for p0 in range(p_begin, p_end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        m_p = p < p_end
        z = tl.load(z_ptr + p, mask=m_p, other=0.0)
        zn = gain * z + offset
        zhat = (z - mean) * rstd
        a = tl.where(m_p, tl.exp(relu(zn, RELU_Z) - lse), 0.0)
        product = a * tl.load(da_ptr + p, mask=m_p, other=0.0)
        t0 += product
        if RELU_Z:
            a = tl.where(zn <= 0, 0.0, a)
            product = tl.where(zn <= 0, 0.0, product)
        t1 += product
        t2 += a
        t3 += product * zhat
        t4 += a * zhat
    tl.store(sums_ptr, tl.sum(t0, 0))
    tl.store(sums_ptr + stride, tl.sum(t1, 0))
    tl.store(sums_ptr + 2 * stride, tl.sum(t2, 0))
    tl.store(sums_ptr + 3 * stride, tl.sum(t3, 0))
    tl.store(sums_ptr + 4 * stride, tl.sum(t4, 0))


@triton.jit
def image_sums(
    sums_ptr,  # [5, N, chunks]
    images,
    chunks,
    BLOCK_N: tl.constexpr,
    BLOCK_I: tl.constexpr,
    RELU_Z: tl.constexpr,
):
    """The sums of dl and of dl * zhat over one subspace of all images of this process."""
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    stride = images * chunks
    dl = tl.zeros([BLOCK_N], dtype)
    dl_zhat = tl.zeros([BLOCK_N], dtype)
    for n0 in range(0, images, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)[:, None]
        t0 = tl.zeros([BLOCK_N, BLOCK_I], dtype)
        t1 = t0
        t2 = t0
        t3 = t0
        t4 = t0
        for i0 in range(0, chunks, BLOCK_I):
            i = i0 + tl.arange(0, BLOCK_I)[None, :]
            m_i = (n < images) & (i < chunks)
            i_ptr = sums_ptr + (n * chunks + i)
            t0 += tl.load(i_ptr, mask=m_i, other=0.0)
            if RELU_Z:
                t1 += tl.load(i_ptr + stride, mask=m_i, other=0.0)
                t2 += tl.load(i_ptr + 2 * stride, mask=m_i, other=0.0)
            t3 += tl.load(i_ptr + 3 * stride, mask=m_i, other=0.0)
            t4 += tl.load(i_ptr + 4 * stride, mask=m_i, other=0.0)
        total = tl.sum(t0, 1)
        if RELU_Z:
            dl += tl.sum(t1, 1) - total * tl.sum(t2, 1)
        dl_zhat += tl.sum(t3, 1) - total * tl.sum(t4, 1)
    return tl.sum(dl, 0), tl.sum(dl_zhat, 0)


@triton.jit
def pixel_gradient(
    a,
    da,
    total,  # S
    z,
    logit,
    RELU_Z: tl.constexpr,
    gain=None,  # as in `logit_gradient`
    batch=None,
):
    """dl of pixels, or dz in its place."""
    dl = a * (da - total)
    if RELU_Z:
        dl = tl.where(logit <= 0, 0.0, dl)
    if batch is not None:
        mean, rstd, mean_dl, mean_dl_zhat = batch
        dl = gain * (dl - mean_dl - (z - mean) * rstd * mean_dl_zhat)
    return dl


@triton.jit
def logit_gradient(
    z_ptr,  # [H*W]
    da_ptr,  # [H*W]
    lse,
    total,  # S
    a_ptr,  # [r_end - r_begin + 4, pitch], scratch of this program with a border, or None
    dl_ptr,  # likewise
    r_begin,
    r_end,
    H,
    W,
    pitch,
    LEFT: tl.constexpr,  # columns of the border before the map's first
    BLOCK_P: tl.constexpr,
    RELU_Z: tl.constexpr,
    gain=None,  # with an offset: A is the softmax of act_z(gain * z + offset)
    offset=None,
    batch=None,  # (mean, rstd, mean of dl, mean of dl * zhat): dz, the gradient before the norm, stands for dl
):
    """Writes A and dl of rows r_begin - 1 .. r_end and their border; returns the sum of dl over rows r_begin on.

    The sum is db, which is asked for without gain and with act_z only; else 0 is returned.
    """
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    db = tl.full([], 0.0, dtype)
    for i0 in range(0, (r_end - r_begin + 4) * pitch, BLOCK_P):
        i = i0 + tl.arange(0, BLOCK_P)
        p, row, m_p = bordered(i, r_begin, r_end, H, W, pitch, LEFT)
        z = tl.load(z_ptr + p, mask=m_p, other=0.0)
        logit = z
        if gain is not None:
            logit = gain * z + offset
        a = tl.exp(relu(logit, RELU_Z) - lse)
        da = tl.load(da_ptr + p, mask=m_p, other=0.0)
        dl = tl.where(m_p, pixel_gradient(a, da, total, z, logit, RELU_Z, gain, batch), 0.0)
        if RELU_Z:
            if gain is None:
                db += tl.sum(tl.where((row >= r_begin) & (row < r_end), dl, 0.0), 0)
        m_i = i < (r_end - r_begin + 4) * pitch
        if a_ptr is not None:
            tl.store(a_ptr + i, a, mask=m_i)
        tl.store(dl_ptr + i, dl, mask=m_i)
    return db
