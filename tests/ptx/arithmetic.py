"""PTX operations that numpy does not have; all on arrays, or on an array and a scalar."""

import numpy as np

f2, f4, f8 = np.float16, np.float32, np.float64
u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i1, i2, i4, i8 = np.int8, np.int16, np.int32, np.int64
b1 = np.bool_


def bf(a):
    """bfloat16, as u2, to float32."""
    return (np.asarray(a).astype(u4) << u4(16)).view(f4)


def tobf(x):
    """float32 to bfloat16, as u2, to nearest even."""
    bits = np.ascontiguousarray(x, f4).view(u4)
    rounded = ((bits + (u4(0x7FFF) + ((bits >> u4(16)) & u4(1)))) >> u4(16)).astype(u2)
    return np.where(np.isnan(x), u2(0x7FFF), rounded)


def ftz(x):
    return np.where(np.abs(x) < f4(2.0**-126), np.copysign(f4(0), x), x)


def fma_f2(a, b, c):
    return (a.astype(f8) * b + c).astype(f2)


def fma_bf(a, b, c):
    return (a.astype(f8) * b + c).astype(f4)


def fma_f4(a, b, c):
    """The product is exact in float64; the sum rounds there first."""
    t = np.multiply(a, b, dtype=f8)
    t += c
    return t.astype(f4)


def fma_f8(a, b, c):
    """In 64 bits of significand in place of 106."""
    return (np.asarray(a, np.longdouble) * b + c).astype(f8)


def _signed_zero(result, a, b, minimum):
    """+0 is larger than -0."""
    equal = a == b
    if np.any(equal):
        a, b = np.broadcast_arrays(a, b)
        kind = f"u{result.dtype.itemsize}"
        x, y = np.ascontiguousarray(a).view(kind), np.ascontiguousarray(b).view(kind)
        return np.where(equal, ((x | y) if minimum else (x & y)).view(result.dtype), result)
    return result


def max_nan(a, b):
    return _signed_zero(np.maximum(a, b), a, b, False)


def min_nan(a, b):
    return _signed_zero(np.minimum(a, b), a, b, True)


def max_num(a, b):
    return _signed_zero(np.fmax(a, b), a, b, False)


def min_num(a, b):
    return _signed_zero(np.fmin(a, b), a, b, True)


def ex2_(x):
    return np.exp2(x.astype(f8)).astype(x.dtype)


def lg2_(x):
    return np.log2(x.astype(f8)).astype(x.dtype)


def rcp_(x):
    return x.dtype.type(1) / x


def rcp_f8(x):
    """rcp.approx.ftz.f64: of the upper halves."""
    high = u8(0xFFFFFFFF00000000)
    return ((1 / (x.view(u8) & high).view(f8)).view(u8) & high).view(f8)


def sqrt_(x):
    return np.sqrt(x)


def rsqrt_(x):
    return (1 / np.sqrt(x.astype(f8))).astype(x.dtype)


def toint(x, rounding, kind):
    """Saturating; 0 of NaN."""
    x = rounding(x.astype(f8))
    info = np.iinfo(kind)
    low, high = x <= info.min, x >= info.max
    inside = np.where(low | high | np.isnan(x), 0, x).astype(kind)
    return np.where(low, kind(info.min), np.where(high, kind(info.max), inside))


def intdiv(a, b):
    """Towards zero; of a divisor of 0, which PTX leaves open, all bits."""
    zero = b == 0
    q = np.floor_divide(a, np.where(zero, 1, b).astype(a.dtype))
    if a.dtype.kind == "i":
        q = q + ((q * b != a) & ((a < 0) != (b < 0)))
    return np.where(zero, ~a.dtype.type(0), q).astype(a.dtype)


def intrem(a, b):
    return (a - intdiv(a, b) * b).astype(a.dtype)


def mulhi(a, b):
    bits = 8 * a.dtype.itemsize
    if bits == 64:
        exact = [(int(p) * int(q)) >> 64 for p, q in zip(*map(np.ravel, np.broadcast_arrays(a, b)), strict=True)]
        return np.array([e & (2**64 - 1) for e in exact], u8).view(a.dtype)
    wide = f"{a.dtype.kind}{bits // 4}"
    return (np.multiply(a, b, dtype=wide) >> np.dtype(wide).type(bits)).astype(a.dtype)


def _shift(operation, a, amount):
    bits = 8 * a.dtype.itemsize
    clamped = np.minimum(amount, u4(bits)).astype(a.dtype)
    result = operation(a, np.minimum(clamped, a.dtype.type(bits - 1)))
    beyond = clamped == bits
    if not np.any(beyond):
        return result
    rest = a >> a.dtype.type(bits - 1) if operation is np.right_shift and a.dtype.kind == "i" else a.dtype.type(0)
    return np.where(beyond, rest, result)


def shl(a, amount):
    return _shift(np.left_shift, a, amount)


def shr(a, amount):
    return _shift(np.right_shift, a, amount)


def funnel(modifiers, a, b, c):
    c = c & u4(31) if "wrap" in modifiers else np.minimum(c, u4(32))
    both = (b.astype(u8) << u8(32)) | a
    if "l" in modifiers:
        return ((both << c.astype(u8)) >> u8(32)).astype(u4)
    return (both >> c.astype(u8)).astype(u4)


def bfe(a, position, length):
    bits = 8 * a.dtype.itemsize
    position, length = (np.broadcast_to(np.asarray(t & u4(255)), a.shape) for t in (position, length))
    unsigned = a.view(f"u{a.dtype.itemsize}").astype(u8)
    mask = np.where(length >= 64, ~u8(0), (u8(1) << np.minimum(length, 63).astype(u8)) - u8(1))
    value = np.where(position >= bits, u8(0), unsigned >> np.minimum(position, 63).astype(u8)) & mask
    if a.dtype.kind == "i":
        top = np.minimum(position + length - u4(1), u4(bits - 1)).astype(u8)
        sign = (unsigned >> top) & u8(1)
        value = np.where((length > 0) & (sign == 1), value | ~mask, value)
    return value.astype(f"u{a.dtype.itemsize}").view(a.dtype)


def lop3(a, b, c, table):
    result = np.zeros_like(a)
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def popc(a):
    return np.bitwise_count(a).astype(u4)


def clz(a):
    bits = 8 * a.dtype.itemsize
    return np.where(
        a == 0, bits, bits - 1 - np.floor(np.log2(np.maximum(a, 1).astype(np.longdouble))).astype(i4)
    ).astype(u4)


def prmt(a, b, c):
    """Bytes of a and b chosen by the nibbles of c."""
    parts = np.stack([t.view(u1).reshape(-1, 4) for t in (a, b)], axis=1).reshape(-1, 8)
    out = np.empty((len(parts), 4), u1)
    for j in range(4):
        nibble = (c >> u4(4 * j)) & u4(15)
        byte = parts[np.arange(len(parts)), (nibble & 7).astype(i8)]
        out[:, j] = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
    return out.view(u4)[:, 0]
