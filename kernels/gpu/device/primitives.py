"""What all kernels share: where elements lie, and how x is read for pooling.

Names: `o_` an offset in elements, `m_` a mask; in helpers x_ptr and its like already point at their slab.

The affine map, ReLU and a positive scale commute with the maximum, a negative scale turns it into a minimum. So the
kernels pool sign(scale) * x, exactly and in x's own type, and apply |scale|, shift and ReLU once, afterwards:

    m = act_u(|scale| * max over W of (sign(scale) * x) + shift),      sign(0) = 0
"""

import triton
import triton.language as tl


@triton.jit
def sign_of(scale):
    """1, -1, 0, or NaN."""
    return tl.where(scale > 0, 1.0, tl.where(scale < 0, -1.0, scale * 0.0))


@triton.jit
def maximum(a, b):
    """The larger; NaN where either is, on the GPU as in the interpreter."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def mirrored_program():
    """The program's place in a grid of two axes, counted from its end: what was read last is read first."""
    return tl.num_programs(0) - 1 - tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)


@triton.jit
def clamp(i, size):
    """The index in [0, size) nearest to i."""
    return tl.minimum(tl.maximum(i, 0), size - 1)


@triton.jit
def once():
    """1, which only LLVM finds out. See `load_apart`."""
    return (tl.program_id(0) | 1) & 1


@triton.jit
def load_apart(ptrs, mask):
    """Loads a tile for each of the tuple's, 0 where `mask` is not, which may be None.

    The pass of Triton that chooses layouts follows from each access all that it depends on and that depends on it. With
    many accesses it takes nine tenths of the compiler's time. It leaves out an access whose address is an argument of a
    loop. So this is a loop of one turn, of which LLVM leaves nothing.
    """
    tiles = ()
    for i in tl.static_range(len(ptrs)):
        tiles = tiles + (tl.zeros(ptrs[i].shape, ptrs[i].dtype.element_ty),)
    for _ in tl.range(once(), num_stages=1):
        tiles = ()
        next_ptrs = ()
        for i in tl.static_range(len(ptrs)):
            if mask is None:
                tiles = tiles + (tl.load(ptrs[i]),)
            else:
                tiles = tiles + (tl.load(ptrs[i], mask=mask, other=0.0),)
            next_ptrs = next_ptrs + (ptrs[i] + 128,)  # it would be no argument if it did not change; keeps an alignment
        ptrs = next_ptrs
    return tiles


@triton.jit
def store_apart(ptr, value, mask):
    """Stores a tile, converted to its type. See `load_apart`."""
    for _ in tl.range(once(), num_stages=1):
        tl.store(ptr, value.to(ptr.dtype.element_ty), mask=mask)
        ptr += 128


@triton.jit
def load_signed(x_ptr, o_x, sign, m_c, EVEN_C: tl.constexpr, CACHE: tl.constexpr):
    """sign * x in the type of comparison, which `sign` carries; 0 in channels beyond the subspace.

    CACHE is Triton's eviction policy, or ""; under a mask it would cost up to ten instructions per element.
    """
    if EVEN_C:
        x = tl.load(x_ptr + o_x, eviction_policy=CACHE)
    else:
        x = tl.load(x_ptr + o_x, mask=m_c, other=0.0)
    return x.to(sign.dtype) * sign


@triton.jit
def load_channel(p_ptr, o_c, G, dtype: tl.constexpr):
    """A parameter's values for channels o_c of the subspace, 0 beyond its G channels; p_ptr [G]."""
    return tl.load(p_ptr + o_c, mask=o_c < G, other=0.0).to(dtype)


@triton.jit
def pixel_offset(p, W, strides, FLAT: tl.constexpr):
    """Offset of pixel p = row * W + column, given strides (c, h, w); FLAT where one stride serves all pixels."""
    _, stride_h, stride_w = strides
    if FLAT:
        return p * stride_w
    else:
        return (p // W) * stride_h + (p % W) * stride_w


@triton.jit
def widen(o, WIDE: tl.constexpr):
    """Indices as int64 where a slab reaches past 2^31 elements."""
    return tl.cast(o, tl.int64) if WIDE else o  # a size of 1 is an int, which has no `to`


@triton.jit
def product(a, b):
    """a * b, rounded. A sum over lanes would fuse a bare product, each lane its own, and lanes would differ."""
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def aligned(stride, VEC: tl.constexpr):
    """The stride, known to the compiler as a multiple of VEC."""
    return stride // VEC * VEC


@triton.jit
def aligned_strides(stride_n, stride_c, stride_w, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr):
    """The strides of n, c and w, all but the one that may be 1 known as multiples of VEC."""
    if CHANNELS_LAST:
        return aligned(stride_n, VEC), stride_c, aligned(stride_w, VEC)
    else:
        return aligned(stride_n, VEC), aligned(stride_c, VEC), stride_w


@triton.jit
def relu(a, ON: tl.constexpr):
    """act: max(a, 0), keeping NaN, or a itself."""
    return maximum(a, tl.zeros_like(a)) if ON else a
