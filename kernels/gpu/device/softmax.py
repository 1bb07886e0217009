"""The softmax over a map, in the forward: its two numbers m = max and s = sum of exp(. - m), and then A.

It is of act_z(z), or with a gain (BatchNorm after the logits) of act_z(gain * z + offset). Parts of a map are put
together without ever forming exp of a large number:

    m = max(m_0, m_1),    s = s_0 exp(m_0 - m) + s_1 exp(m_1 - m),    A[p] = exp(. - m) / s,    lse = m + log s
"""

import triton
import triton.language as tl

from .primitives import relu


@triton.jit
def finite(m):
    """A maximum fit to be subtracted: 0 in place of -inf, so that exp(-inf - m) is 0."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def combine(m, s, m_i, s_i):
    """(m, s) of two parts together."""
    m_new = tl.maximum(m, m_i)
    shift = finite(m_new)
    return m_new, s * tl.exp(m - shift) + s_i * tl.exp(m_i - shift)


@triton.jit
def map_softmax(
    z_ptr,  # [H*W]
    gain,
    offset,
    HW,
    BLOCK_Z: tl.constexpr,
    RELU_Z: tl.constexpr,
):
    """(m, s) of a whole map that one program reads twice; lanes are pixels."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    lane = tl.arange(0, BLOCK_Z)
    most = tl.full([BLOCK_Z], float("-inf"), dtype)
    for p0 in range(0, HW, BLOCK_Z):
        p = p0 + lane
        z = tl.load(z_ptr + p, mask=p < HW, other=0.0)
        most = tl.maximum(most, tl.where(p < HW, relu(gain * z + offset, RELU_Z), float("-inf")))
    m = tl.max(most, 0)
    total = tl.zeros([BLOCK_Z], dtype)
    for p0 in range(0, HW, BLOCK_Z):
        p = p0 + lane
        z = tl.load(z_ptr + p, mask=p < HW, other=0.0)
        total += tl.exp(tl.where(p < HW, relu(gain * z + offset, RELU_Z), float("-inf")) - finite(m))
    return m, tl.sum(total, 0)


@triton.jit
def attention(
    z_ptr,  # [H*W]
    p,
    m_p,
    m,
    s,
    RELU_Z: tl.constexpr,
    gain,  # or None, and offset with it
    offset,
):
    """A of pixels p, given (m, s) of the map."""
    z = tl.load(z_ptr + p, mask=m_p, other=float("-inf"))
    if gain is not None:
        z = tl.where(m_p, gain * z + offset, float("-inf"))
    return tl.exp(relu(z, RELU_Z) - m) / s
