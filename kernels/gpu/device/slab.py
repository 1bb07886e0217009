"""Where a slab lies: subspace k of image n, G channels of a tensor [N, C, H, W]. For all kernels but `moments_kernel`.

A program belongs to one slab; axis 0 of a grid counts N * num_splits of them. These helpers also tell the compiler what
the launch knows: that VEC divides strides, and H*W, or in channels_last G. Else it would access element by element.
"""

import triton
import triton.language as tl

from .primitives import aligned, aligned_strides


@triton.jit
def slab_place(slab, num_splits, H, W, G, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr):
    """(n as int64, k, H*W, G) of a slab."""
    n = (slab // num_splits).to(tl.int64)
    k = slab % num_splits
    HW = H * W
    if CHANNELS_LAST:
        G = aligned(G, VEC)
    else:
        HW = aligned(HW, VEC)
    return n, k, HW, G


@triton.jit
def slab_of(
    n,
    channel,  # the slab's first
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    CHANNELS_LAST: tl.constexpr,
    VEC: tl.constexpr,
    RUN: tl.constexpr = 1,  # divides where slabs begin
):
    """Of a tensor [N, C, H, W]: the offset at which a slab begins, and the strides (c, h, w) inside it."""
    stride_n, stride_c, stride_w = aligned_strides(stride_n, stride_c, stride_w, CHANNELS_LAST, VEC)
    return aligned(n * stride_n + channel.to(tl.int64) * stride_c, RUN), (stride_c, stride_h, stride_w)
