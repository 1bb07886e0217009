"""Where a slab lies: one subspace k of one image n, G channels of [N, C, H, W].

Programs of all kernels but `moments_kernel` belong to one slab; axis 0 of their grids counts N * num_splits slabs.
Beyond places, these helpers tell the compiler what the launch knows and a kernel's arguments do not say: that VEC
divides strides, and H*W, or in channels_last G. Without that, accesses have one element.
"""

import triton
import triton.language as tl

from .primitives import aligned, aligned_strides


@triton.jit
def slab_place(slab, num_splits, H, W, G, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr):
    """(n as int64, k, H*W, G) of a slab."""
    HW = H * W
    if CHANNELS_LAST:
        G = aligned(G, VEC)
    else:
        HW = aligned(HW, VEC)
    return (slab // num_splits).to(tl.int64), slab % num_splits, HW, G


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
