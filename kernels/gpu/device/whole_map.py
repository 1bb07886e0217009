"""Both directions on maps so small that a lane holds a whole column of them: MAP_H x MAP_W, a program per slab.

Lanes are columns of BLOCK_C channels, so tiles are [BLOCK_C, BLOCK_W]. A tuple of them, one for each row, is a map. The
rows are written out, and the sizes are constants: each access is one address per channel, plus a constant. What belongs
to the map and to no channel (z, A, dl) is kept in such tuples too, the same in every channel of the tile, for all
channels of the slab.

x, dy, dx and y are contiguous within a slab, or dense in channels_last: PIXEL elements lie from a pixel to the next, 1
or C. Columns beyond the map are copies of its last; their dl is 0.
"""

import triton
import triton.language as tl

from .maxpool_backward import winning_rows
from .primitives import load_apart, maximum, relu, sign_of, store_apart
from .reweight import weighted
from .softmax import finite
from .softmax_backward import pixel_gradient


@triton.jit
def column_of(MAP_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr):
    """Column of the map for each lane [BLOCK_C, BLOCK_W]: the nearest, for lanes beyond it."""
    return tl.minimum(tl.arange(0, BLOCK_W)[None, :], MAP_W - 1) + tl.zeros([BLOCK_C, 1], tl.int32)


@triton.jit
def pixels(c, col, MAP_H: tl.constexpr, MAP_W: tl.constexpr, PIXEL: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_W] of the first row. Lanes lie along it in either layout."""
    if PIXEL == 1:
        return neighbours(c * (MAP_H * MAP_W), col)
    else:
        return tl.max_contiguous(c + col * PIXEL, [1, 1])


@triton.jit
def neighbours(o, col):
    """Offsets or addresses o + col, promised to be neighbours along a row, so that lanes lie along it, and not to be
    aligned.

    The sum is made here, since Triton 3.6 forgets what is promised of an argument.
    """
    return tl.multiple_of(tl.max_contiguous(o + col, [1, col.shape[1]]), [1, 1])


@triton.jit
def spread(ptr, c):
    """Addresses of what channels c [BLOCK_C, BLOCK_W] have, promised to be no neighbours: lanes lie along rows."""
    return tl.max_contiguous(ptr + c, [1, 1])


@triton.jit
def load_spread(ptr, c, m_c, dtype: tl.constexpr):
    """A parameter's value in every lane of its channel; 0 in channels beyond the slab."""
    return tl.load(spread(ptr, c), mask=m_c, other=0.0).to(dtype)


@triton.jit
def load_map(
    ptr,
    o,  # [BLOCK_C, BLOCK_W], of the first row
    m_c,
    MAP_H: tl.constexpr,
    ROW: tl.constexpr,  # elements from a row to the next
    EVEN_C: tl.constexpr,
):
    """A tile for each row; 0 in channels beyond the slab."""
    ptrs = ()
    for r in tl.static_range(MAP_H):
        ptrs = ptrs + (ptr + o + r * ROW,)
    return load_apart(ptrs, None if EVEN_C else m_c)


@triton.jit
def map_logits(
    x_ptr,  # [G, H, W]
    scale_ptr,  # [G]
    shift_ptr,  # [G] or None
    v_ptr,  # [G]
    b,
    dtype: tl.constexpr,
    G,
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """z of the map, a tile for each row. See `march_logits` for the formulas."""
    ROW: tl.constexpr = MAP_W * PIXEL
    tile_c = tl.arange(0, BLOCK_C)[:, None]
    col = column_of(MAP_W, BLOCK_C, BLOCK_W)
    i_left = tl.maximum(col - 1, 0)
    i_right = tl.minimum(col + 1, MAP_W - 1)
    sums = ()
    for _ in tl.static_range(MAP_H):
        sums = sums + (tl.zeros([BLOCK_C, BLOCK_W], dtype),)
    constant = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for c0 in range(0, G, BLOCK_C):
        c = c0 + tile_c + tl.zeros([1, BLOCK_W], tl.int32)
        m_c = c < G
        scale = load_spread(scale_ptr, c, m_c, dtype)
        weight = load_spread(v_ptr, c, m_c, dtype)
        sign = sign_of(scale)
        gain = tl.abs(scale)
        if shift_ptr is not None:
            shift = load_spread(shift_ptr, c, m_c, dtype)
        if not RELU_U:
            if shift_ptr is not None:
                constant += weight * shift
            weight *= gain
        raw = load_map(x_ptr, pixels(c, col, MAP_H, MAP_W, PIXEL), m_c, MAP_H, ROW, EVEN_C)
        xs = ()
        for r in tl.static_range(MAP_H):
            xs = xs + (raw[r].to(dtype) * sign,)
        pairs = ()
        for r in tl.static_range(MAP_H - 1):
            pairs = pairs + (maximum(xs[r], xs[r + 1]),)
        more = ()
        for r in tl.static_range(MAP_H):
            m = xs[0]  # of the column; a map of one row has no pairs
            if MAP_H > 1:
                m = pairs[min(r, MAP_H - 2)]
            if r > 0 and r < MAP_H - 1:
                m = maximum(m, xs[r - 1])
            m = maximum(maximum(tl.gather(m, i_left, 1), tl.gather(m, i_right, 1)), m)
            if RELU_U:
                m *= gain
                if shift_ptr is not None:
                    m += shift
                m = relu(m, True)
            more = more + (sums[r] + weight * m,)
        sums = more
    b += tl.sum(tl.sum(tl.where(tl.arange(0, BLOCK_W)[None, :] == 0, constant, 0.0), 1), 0)
    zs = ()
    for r in tl.static_range(MAP_H):
        zs = zs + (tl.sum(sums[r], 0)[None, :] + b + tl.zeros([BLOCK_C, BLOCK_W], dtype),)
    return zs


@triton.jit
def map_forward(
    x_ptr,  # [G, H, W]
    scale_ptr,  # [G]
    shift_ptr,  # [G] or None
    v_ptr,  # [G]
    b,
    y_ptr,  # [G, H, W]
    a_ptr,  # [H, W] or None
    z_ptr,  # [H, W]
    lse_ptr,  # [1] or None
    G,
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RELU_U: tl.constexpr,
    RELU_Z: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Writes y of the slab, and A, z and lse of its map."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    ROW: tl.constexpr = MAP_W * PIXEL
    lane = tl.arange(0, BLOCK_W)[None, :]
    tile_c = tl.arange(0, BLOCK_C)[:, None]
    col = column_of(MAP_W, BLOCK_C, BLOCK_W)
    zs = map_logits(
        x_ptr, scale_ptr, shift_ptr, v_ptr, b, dtype, G, MAP_H, MAP_W, PIXEL, BLOCK_C, BLOCK_W, RELU_U, EVEN_C
    )
    logits = ()
    most = tl.full([BLOCK_C, BLOCK_W], float("-inf"), dtype)
    for r in tl.static_range(MAP_H):
        logit = relu(zs[r], RELU_Z)
        logits = logits + (logit,)
        most = tl.maximum(most, logit)  # lanes beyond the map have their neighbour's
    m = tl.max(most, 1)[:, None]
    total = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for r in tl.static_range(MAP_H):
        total += tl.where(lane < MAP_W, tl.exp(logits[r] - finite(m)), 0.0)
    s = tl.sum(total, 1)[:, None]
    first = (tile_c == 0) & (lane < MAP_W)
    z_row_ptr = neighbours(z_ptr, col)
    if a_ptr is not None:
        a_row_ptr = neighbours(a_ptr, col)
    attention = ()
    for r in tl.static_range(MAP_H):
        a = tl.exp(logits[r] - m) / s
        store_apart(z_row_ptr + r * MAP_W, zs[r], first)
        if a_ptr is not None:
            store_apart(a_row_ptr + r * MAP_W, a, first)
        attention = attention + (a,)
    if lse_ptr is not None:
        tl.store(lse_ptr + tile_c + lane, m + tl.log(s), mask=(tile_c == 0) & (lane == 0))
    for c0 in range(0, G, BLOCK_C):
        m_c = c0 + tile_c < G
        m_y = lane < MAP_W
        if not EVEN_C:
            m_y = m_y & m_c
        o = pixels(c0 + tile_c, col, MAP_H, MAP_W, PIXEL)
        xs = load_map(x_ptr, o, m_c, MAP_H, ROW, EVEN_C)
        for r in tl.static_range(MAP_H):
            store_apart(y_ptr + o + r * ROW, weighted(xs[r].to(dtype), attention[r]), m_y)


@triton.jit
def map_logit_gradient(
    dy_ptr,  # [G, H, W] or None
    d_attention_ptr,  # [H, W] or None
    x_ptr,  # [G, H, W]
    z_ptr,  # [H, W]
    lse,
    G,
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RELU_Z: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """A and dl of the map, a tile for each row, and db. See `softmax_backward` for the formulas."""
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    ROW: tl.constexpr = MAP_W * PIXEL
    tile_c = tl.arange(0, BLOCK_C)[:, None]
    col = column_of(MAP_W, BLOCK_C, BLOCK_W)
    m_w = tl.arange(0, BLOCK_W)[None, :] < MAP_W
    products = ()
    for _ in tl.static_range(MAP_H):
        products = products + (tl.zeros([BLOCK_C, BLOCK_W], dtype),)
    if dy_ptr is not None:
        for c0 in range(0, G, BLOCK_C):
            o = pixels(c0 + tile_c, col, MAP_H, MAP_W, PIXEL)
            m_c = c0 + tile_c < G
            xs = load_map(x_ptr, o, m_c, MAP_H, ROW, EVEN_C)
            ds = load_map(dy_ptr, o, m_c, MAP_H, ROW, EVEN_C)
            more = ()
            for r in tl.static_range(MAP_H):
                more = more + (products[r] + ds[r].to(dtype) * xs[r].to(dtype),)
            products = more
    zs = load_map(neighbours(z_ptr, col), 0, m_w, MAP_H, MAP_W, True)
    attention = ()
    gradients = ()
    total = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for r in tl.static_range(MAP_H):
        a = tl.where(m_w, tl.exp(relu(zs[r], RELU_Z) - lse), 0.0)
        da = tl.sum(products[r], 0)[None, :]
        if d_attention_ptr is not None:
            da += tl.load(neighbours(d_attention_ptr, col) + r * MAP_W).to(dtype)
        total += a * da
        attention = attention + (a,)
        gradients = gradients + (da,)
    s = tl.sum(total, 1)[:, None]
    dls = ()
    db = tl.zeros([BLOCK_C, BLOCK_W], dtype)
    for r in tl.static_range(MAP_H):
        dl = tl.where(m_w, pixel_gradient(attention[r], gradients[r], s, zs[r], zs[r], RELU_Z), 0.0)
        db += dl
        dls = dls + (dl,)
    # every channel of the tile has the same, of which one is taken
    return attention, dls, tl.sum(tl.sum(tl.where(tile_c == 0, db, 0.0), 1), 0)


@triton.jit
def norm_map_logit_gradient(
    da_ptr,  # [H, W]
    z_ptr,  # [H, W]
    lse,
    total,  # S
    gain,
    offset,
    batch,  # as in `logit_gradient`
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RELU_Z: tl.constexpr,
):
    """A and dz of the map, a tile for each row."""
    col = column_of(MAP_W, BLOCK_C, BLOCK_W)
    m_w = tl.arange(0, BLOCK_W)[None, :] < MAP_W
    zs = load_map(neighbours(z_ptr, col), 0, m_w, MAP_H, MAP_W, True)
    das = load_map(neighbours(da_ptr, col), 0, m_w, MAP_H, MAP_W, True)
    attention = ()
    dzs = ()
    for r in tl.static_range(MAP_H):
        logit = gain * zs[r] + offset
        a = tl.exp(relu(logit, RELU_Z) - lse)
        attention = attention + (a,)
        dzs = dzs + (tl.where(m_w, pixel_gradient(a, das[r], total, zs[r], logit, RELU_Z, gain, batch), 0.0),)
    return attention, dzs


@triton.jit
def map_input_gradient(
    dy_ptr,  # [G, H, W] or None
    x_ptr,  # [G, H, W]
    scale_ptr,  # [G]
    shift_ptr,  # [G] or None
    centre_ptr,  # [G] or None; else x stands for x - centre in u and in the sums
    v_ptr,  # [G]
    attention,  # a tile for each row
    dls,  # likewise
    dx_ptr,  # [G, H, W]
    dv_ptr,  # [G], this program's partial sums
    dscale_ptr,  # [G]
    dshift_ptr,  # [G] or None
    G,
    MAP_H: tl.constexpr,
    MAP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RELU_U: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Writes dx of the slab, and dv, dscale and dshift. See `backward` for the formulas."""
    dtype: tl.constexpr = dls[0].dtype
    ROW: tl.constexpr = MAP_W * PIXEL
    lane = tl.arange(0, BLOCK_W)[None, :]
    col = column_of(MAP_W, BLOCK_C, BLOCK_W)
    i_left = tl.maximum(col - 1, 0)
    i_right = tl.minimum(col + 1, MAP_W - 1)
    # in a ring: what passes its seam is 0
    to_the_left = (lane + 1) % BLOCK_W + tl.zeros([BLOCK_C, 1], tl.int32)
    to_the_right = (lane + (BLOCK_W - 1)) % BLOCK_W + tl.zeros([BLOCK_C, 1], tl.int32)
    for c0 in range(0, G, BLOCK_C):
        # in every lane of a channel, and laid as its pixels are, so that nothing changes its layout
        c = c0 + tl.arange(0, BLOCK_C)[:, None] + tl.zeros([1, BLOCK_W], tl.int32)
        m_c = c < G
        m = lane < MAP_W
        if not EVEN_C:
            m = m & m_c
        o = pixels(c, col, MAP_H, MAP_W, PIXEL)
        scale = load_spread(scale_ptr, c, m_c, dtype)
        v = load_spread(v_ptr, c, m_c, dtype)
        if shift_ptr is not None:
            shift = load_spread(shift_ptr, c, m_c, dtype)
        if centre_ptr is not None:
            centre = load_spread(centre_ptr, c, m_c, dtype)
        sign = sign_of(scale)
        weight = scale * v
        raw = load_map(x_ptr, o, m_c, MAP_H, ROW, EVEN_C)
        # of each window of three columns: its maximum; whether the first to reach it is the left, the right
        xs = ()
        hs = ()
        lefts = ()
        rights = ()
        for r in tl.static_range(MAP_H):
            x = raw[r].to(dtype)
            xs = xs + (x,)
            x = x * sign
            left = tl.gather(x, i_left, 1)
            right = tl.gather(x, i_right, 1)
            hs = hs + (maximum(maximum(left, right), x),)
            lefts = lefts + ((lane > 0) & (left >= maximum(x, right)),)
            rights = rights + (right > maximum(left, x),)
        # of each window: what it gives to the row above its own, to its own and to the row below
        ups = ()
        heres = ()
        downs = ()
        for r in tl.static_range(MAP_H):
            above, below = winning_rows(hs[max(r - 1, 0)], hs[r], hs[min(r + 1, MAP_H - 1)], r > 0)
            ups = ups + (tl.where(above, dls[r], 0.0),)
            heres = heres + (tl.where(above | below, 0.0, dls[r]),)
            downs = downs + (tl.where(below, dls[r], 0.0),)
        sum_tx = tl.zeros([BLOCK_C, BLOCK_W], dtype)
        sum_t = tl.zeros([BLOCK_C, BLOCK_W], dtype)
        for r in tl.static_range(MAP_H):
            won = heres[r]
            if r > 0:
                won += downs[r - 1]
            if r < MAP_H - 1:
                won += ups[r + 1]
            t = tl.where(lefts[r] | rights[r], 0.0, won)
            t += tl.gather(tl.where(lefts[r], won, 0.0), to_the_left, 1)
            t += tl.gather(tl.where(rights[r], won, 0.0), to_the_right, 1)
            x = xs[r]
            if centre_ptr is not None:
                x -= centre
            if RELU_U:
                u = scale * x
                if shift_ptr is not None:
                    u += shift
                t = tl.where(u <= 0, 0.0, t)
            dx = weight * t
            if dy_ptr is not None:
                dy = load_apart((dy_ptr + o + r * ROW,), None if EVEN_C else m_c)[0].to(dtype)
                dx += dy + attention[r] * dy
            store_apart(dx_ptr + o + r * ROW, dx, m)
            sum_tx += t * x
            sum_t += t
        sum_tx = tl.sum(sum_tx, 1)[:, None]
        dv = scale * sum_tx
        first = m_c & (lane == 0)
        if dshift_ptr is not None:
            sum_t = tl.sum(sum_t, 1)[:, None]
            if shift_ptr is not None:
                dv += shift * sum_t
            tl.store(spread(dshift_ptr, c), v * sum_t, mask=first)
        tl.store(spread(dv_ptr, c), dv, mask=first)
        tl.store(spread(dscale_ptr, c), v * sum_tx, mask=first)
