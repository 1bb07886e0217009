"""Launch configurations: data chosen by pure functions of shape, type and layout. Needs neither Triton nor a GPU.

A slab is one subspace of one image, G*H*W elements. Two regimes:

    slab   one program per slab: logits row strip by row strip, then the second sweep over the same slab from cache
    split  two launches, in which a slab has several programs: what one launch finds for its part, such as (max, sum of
           exp), goes to the next through memory. For slabs too large for a program's share of the cache, or too few to
           fill the GPU
"""

import dataclasses

ROWS = 7  # output rows per strip of the forward sweep: MobileNet maps are 7 * 2^k high
WHOLE_MAP = 14  # rows and columns, at most, whose code is written out
LANE_COLUMNS = 13  # of 16 bits, times channels, if a lane that holds whole rows has two; 14 spill on sm_100
MIN_BLOCK_W, MAX_BLOCK_W = 8, 32
RUN_COLUMNS = 4  # at most, that a lane holds of NCHW
STRIP_COLUMNS = 7  # at most, in the backward of channels_last: MobileNet maps are 7 * 2^k wide
SMALL_SLAB = 2048  # elements; one warp serves a slab up to this
SLAB_BYTES = 128 * 1024  # largest slab of the slab regime: two of them share an SM's 256 KB of L1
PROGRAMS_PER_SM = 2  # fewer slabs than this per SM leave the GPU idle
ONE_LAUNCH_BYTES = 64 * 1024  # a slab up to this takes about as long in one launch of the forward as in two
NORM_PROGRAMS_PER_SM = 8  # strips of the BatchNorm forward; each reads all partial moments of its channels
MARCH_PROGRAMS_PER_SM = 6  # strips of the backward, of which an SM holds 2 or 3; each takes two rows more than it has
MOMENTS_PROGRAMS_PER_SM = 4  # of 4 warps; more write more partial moments
FLAT_PROGRAMS_PER_SM = 8  # of the backward with BatchNorm, but for its march, which reads five sums of each


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How one direction of the operator is launched."""

    split: bool  # False: one program per slab; True: strips of rows in two launches
    block_w: int  # columns of a tile of the row march; strips of them in the backward of channels_last
    block_c: int  # channels of a tile of the row march
    columns: int  # neighbouring columns of NCHW that a lane of the march holds
    strip_columns: int  # columns of a strip in the backward of channels_last
    block_p: int  # pixels of a tile of the flat sweep
    block_k: int  # channels of a tile of the flat sweep
    num_warps: int
    max_registers: int  # per lane
    strip_rows: int  # split: rows per program of a march, a multiple of ROWS
    whole_map: bool = False  # the rows of a map are written out, if the tensors lie as that needs
    lane_channels: int = 0  # of whole_map in channels_last: channels of a lane that holds whole rows; 0: tiles are maps
    flat_programs: int = FLAT_PROGRAMS_PER_SM  # of the backward with BatchNorm, in its flat passes


@dataclasses.dataclass(frozen=True)
class MomentsConfig:
    """How the moments of every channel are computed."""

    block_c: int  # channels of a tile
    block_p: int  # pixels of a tile, counted through all images
    num_warps: int
    max_registers: int  # per lane
    parts: int  # programs per block of channels
    part_pixels: int  # pixels per program, a multiple of block_p; no part is empty


def forward_config(
    shape: tuple[int, int, int, int], num_splits: int, itemsize: int, channels_last: bool, num_sms: int
) -> LaunchConfig:
    """The launch of the forward for x of this shape [N, C, H, W], bytes per element and layout."""
    # Instructions per element, float16, with whole maps and without: 31 and 48 at 160x7x7 in 8 subspaces, 32 and 52 in
    # channels_last. But 27.1 and 28.8 at 1024x7x7 in 4, 25.6 and 24.5 at 512x14x14: the march wastes little, and the
    # sweep has long accesses.
    config = _forward_tiles(shape, num_splits, itemsize, channels_last, num_sms)
    if config.num_warps == 1 and _is_whole(config, shape, itemsize):
        return dataclasses.replace(config, whole_map=True, max_registers=255)
    if config.split and _slab_bytes(shape, num_splits, itemsize) <= ONE_LAUNCH_BYTES:
        wide = _forward_tiles(shape, num_splits, itemsize, channels_last, num_sms, num_warps=8)
        return dataclasses.replace(wide, split=False, strip_rows=0)
    return config


def _forward_tiles(
    shape: tuple[int, int, int, int],
    num_splits: int,
    itemsize: int,
    channels_last: bool,
    num_sms: int,
    num_warps: int | None = None,
) -> LaunchConfig:
    # Every element of a tile takes 7 sums, one for each row of a strip. Twice as many elements per lane spill in
    # channels_last: float32 on sm_100. Without a limit the assembler aims at 168 registers, and spills a few to get
    # there. So it is given 255, but where a warp spans a row, 168 suffice.
    w = shape[3]
    columns = 1 if channels_last or itemsize == 8 else min(w & -w, RUN_COLUMNS)
    per_lane = 4 if itemsize == 2 or columns == 4 else 2
    config = _config(shape, num_splits, itemsize, channels_last, num_sms, per_lane, 255, num_warps)
    if channels_last or itemsize == 8 or w > 32 * columns:
        return config
    return dataclasses.replace(_with_runs(config, shape, num_splits, columns), max_registers=168)


def _with_runs(config: LaunchConfig, shape: tuple[int, int, int, int], num_splits: int, columns: int) -> LaunchConfig:
    """A tile whose lanes hold so many neighbouring columns of NCHW, and warps whole rows, or as much as they can."""
    _, c, _, w = shape
    block_w = min(max(next_power_of_2(w), MIN_BLOCK_W), 32 * columns)
    block_c = config.block_c * config.block_w // block_w
    while block_c * block_w > 32 * config.num_warps * columns and _idle_quarter(c // num_splits, block_c):
        block_c //= 2
    return dataclasses.replace(config, block_w=block_w, block_c=block_c, columns=columns)


def backward_config(
    shape: tuple[int, int, int, int],
    num_splits: int,
    itemsize: int,
    channels_last: bool,
    num_sms: int,
    compared: int | None = None,  # bytes per element in which x is compared: 4 for bfloat16; None: its own
) -> LaunchConfig:
    """The launches of the backward, with norms or not, for x of this shape, bytes per element and layout."""
    # Instructions per element, float16, with whole maps and without: 63 and 143 at 160x7x7 in 8 subspaces, 60 and 94
    # at 1024x7x7 in 4, 57 and 62 at 512x14x14. channels_last: 64 and 137; with whole rows 45 and 61, 48 and 76. The
    # march with norms: 61 and 116, 55 and 81, 51 and 56; channels_last: 62 and 113, 37 and 54, 38 and 69.
    config = _backward_tiles(shape, num_splits, itemsize, channels_last, num_sms, compared)
    if not _is_whole(config, shape, itemsize):
        return config
    if not channels_last:
        return dataclasses.replace(config, whole_map=True, max_registers=255)
    lane = _lane_channels(config, shape, num_splits, compared or itemsize)
    if lane == 0 and config.num_warps > 1:  # accesses to whole maps would be parts of sectors
        return config
    return dataclasses.replace(config, whole_map=True, lane_channels=lane)


def _backward_tiles(
    shape: tuple[int, int, int, int],
    num_splits: int,
    itemsize: int,
    channels_last: bool,
    num_sms: int,
    compared: int | None,
) -> LaunchConfig:
    if channels_last:
        config = _config(shape, num_splits, itemsize, channels_last, num_sms, 1, max_registers=255)
        config = _with_strips(config, shape, num_splits, MARCH_PROGRAMS_PER_SM * num_sms)
        return _with_columns(config, shape, num_splits, itemsize, compared or itemsize)
    # 4 elements per lane: 160 registers. Instructions per element, float16 56x56: 46 with runs of 4 columns.
    config = _config(shape, num_splits, itemsize, channels_last, num_sms, 1 if itemsize == 8 else 4, 255)
    config = _with_strips(config, shape, num_splits, MARCH_PROGRAMS_PER_SM * num_sms)
    if itemsize == 8:
        return config
    config = _with_runs(config, shape, num_splits, min(shape[3] & -shape[3], RUN_COLUMNS))
    if (compared or itemsize) == 2 and config.num_warps == 4:
        # an SM then holds three such programs in place of two; where x is compared in float32 these do not suffice
        return dataclasses.replace(config, max_registers=168)
    return config


def _is_whole(config: LaunchConfig, shape: tuple[int, int, int, int], itemsize: int) -> bool:
    """Whether the rows of such a map can be written out, `device/whole_map.py` or `device/whole_rows.py`."""
    return not config.split and itemsize < 8 and max(shape[2:]) <= WHOLE_MAP


def _lane_channels(config: LaunchConfig, shape: tuple[int, int, int, int], num_splits: int, compared: int) -> int:
    """Channels of a lane of `device/whole_rows.py`; 0 where its registers do not suffice, or lanes would be idle.

    With masks for channels beyond the subspace it has spills and barriers: float16, 250 channels of 7x7.
    """
    _, c, h, w = shape
    if w < 2 or h < 3 or (h > ROWS and (h - 2) % 3):  # the march turns by three rows, or has no turns
        return 0
    for lane in (2, 1):
        fits = lane == 1 or (compared == 2 and lane * w <= LANE_COLUMNS)
        if fits and c // num_splits % (32 * config.num_warps * lane) == 0:
            return lane
    return 0


def _with_columns(
    config: LaunchConfig, shape: tuple[int, int, int, int], num_splits: int, itemsize: int, compared: int
) -> LaunchConfig:
    """The tile of `march_columns`: channels first, so that accesses are long, then strips of a row.

    A lane holds 8 registers from row to row for each of its columns and channels. So it has one channel and 7 columns.
    In 16 bits it has two channels, which makes accesses of 4 bytes, and 4 columns, unless a row is whole tiles of 7: of
    dense tensors these have constant addresses. Or it has two channels and 7 columns, where these are the row, so that
    nothing beyond them is held, and are compared in 16 bits.
    """
    _, c, _, w = shape
    group = c // num_splits
    lanes = 32 * config.num_warps
    if itemsize == 8:
        return dataclasses.replace(config, block_w=8, strip_columns=2, block_c=lanes // 8)
    elements, most = lanes, STRIP_COLUMNS
    fours = next_power_of_2(group) * next_power_of_2(cdiv(w, 4))  # lanes, if each had one channel and 4 columns
    strips = lanes // min(next_power_of_2(group), lanes)
    whole = group % (lanes // strips) == 0 and w % (STRIP_COLUMNS * strips) == 0
    if itemsize == 2 and w <= STRIP_COLUMNS and compared == 2 and group >= 2 * lanes:
        elements = 2 * lanes
    elif itemsize == 2 and w > STRIP_COLUMNS and not whole and 2 * lanes <= fours:
        if compared == 2 or group % min(next_power_of_2(group), 2 * lanes) == 0:  # else bfloat16 spills
            elements, most = 2 * lanes, 4
    block_c = min(next_power_of_2(group), elements)
    strips = min(elements // block_c, next_power_of_2(cdiv(w, 4)))
    columns = cdiv(w, strips * cdiv(w, most * strips))
    return dataclasses.replace(config, block_w=strips, strip_columns=columns, block_c=max(block_c, lanes // strips))


def halo_columns(w: int, config: LaunchConfig, channels_last: bool) -> int:
    """Columns of x that a tile of the backward's march knows on either side of those that it writes."""
    if channels_last:
        return 0 if (config.block_w, config.strip_columns) == (1, w) else 2
    return 0 if config.block_w >= w else max(config.columns, 2)


def border_columns(halo: int, channels_last: bool) -> int:
    """Columns of the border of A and dl before the map's first."""
    return 1 if channels_last else halo


def border_pitch(w: int, config: LaunchConfig, channels_last: bool) -> int:
    """Columns of A and dl with their border: those that tiles write, and what these know beside them."""
    if channels_last:
        width = config.block_w * config.strip_columns
        return cdiv(w, width) * width + 2
    halo = halo_columns(w, config, channels_last)
    width = config.block_w - 2 * halo
    return cdiv(w, width) * width + 2 * halo


def norm_forward_config(
    shape: tuple[int, int, int, int], num_splits: int, itemsize: int, channels_last: bool, num_sms: int
) -> LaunchConfig:
    """The launches of the forward with BatchNorm.

    Between its logits and its softmax stand the statistics of all images, so a slab is never read twice by one program,
    and is cut into strips only where slabs are few; into as few as fill the GPU, since each program combines all
    partial moments of its channels, and each that applies reads all of z.
    """
    config = _forward_tiles(shape, num_splits, itemsize, channels_last, num_sms)
    config = dataclasses.replace(config, split=_slabs_are_few(shape, num_splits, num_sms))
    return _with_strips(config, shape, num_splits, NORM_PROGRAMS_PER_SM * num_sms)


def _with_strips(
    config: LaunchConfig, shape: tuple[int, int, int, int], num_splits: int, programs: int
) -> LaunchConfig:
    """Strips of as many rows as leave so many programs."""
    n, _, h, _ = shape
    wanted = cdiv(programs, n * num_splits)  # strips per slab
    rows = max(cdiv(h, ROWS) // wanted, 1) * ROWS
    return dataclasses.replace(config, strip_rows=rows if config.split else 0)


def moments_config(shape: tuple[int, int, int, int], itemsize: int, channels_last: bool, num_sms: int) -> MomentsConfig:
    """The launch that computes the moments of every channel of x of this shape [N, C, H, W].

    A tile holds 64 bytes per lane, as runs along the contiguous axis: pixels, or 64 bytes of channels, two sectors.
    Where runs are not whole 16 bytes it holds 16 elements at most, since the offsets of narrow accesses take registers
    too. The channels of a tile are few, so that there are few partial moments: about block_c per program, whatever C.
    """
    n, c, h, w = shape
    pixels = n * h * w
    num_warps = 4
    per_lane = 64 // itemsize
    if (c if channels_last else h * w) * itemsize % 16:
        per_lane = min(per_lane, 16)
    if channels_last:
        block_c = min(next_power_of_2(c), 64 // itemsize)
    else:
        block_c = min(max(c & -c, 4), 16)  # a power of two that divides C, unless it is too small
    block_p = min(32 * num_warps * per_lane // block_c, max(next_power_of_2(pixels), 16))
    blocks = cdiv(c, block_c)
    tiles = cdiv(pixels, block_p)
    part_tiles = cdiv(tiles, max(MOMENTS_PROGRAMS_PER_SM * num_sms // blocks, 1))
    return MomentsConfig(
        block_c=block_c,
        block_p=block_p,
        num_warps=num_warps,
        max_registers=128,
        parts=cdiv(tiles, part_tiles),
        part_pixels=part_tiles * block_p,
    )


def combine_blocks(group: int, num_warps: int) -> tuple[int, int]:
    """(channels, parts) of the tile in which a program combines partial moments: 8 elements per lane."""
    block_m = min(next_power_of_2(group), 128)
    return block_m, 256 * num_warps // block_m


def _config(
    shape: tuple[int, int, int, int],
    num_splits: int,
    itemsize: int,
    channels_last: bool,
    num_sms: int,
    per_lane: int,  # elements of a tile of the row march
    max_registers: int,
    num_warps: int | None = None,  # None: 1 or 4, by the size of a slab
) -> LaunchConfig:
    _, c, h, w = shape
    block_w = min(max(next_power_of_2(w), MIN_BLOCK_W), MAX_BLOCK_W)
    if num_warps is None:
        num_warps = 1 if c // num_splits * h * w <= SMALL_SLAB else 4
    if itemsize == 8:  # for checking, not for speed: one tile
        block_w, num_warps = 16, 4
    # flat tiles: 16 elements per lane, as runs along the contiguous axis: 32 pixels or channels, twice that for 4
    # warps; no more channels than a subspace has
    run, elements = 32 if num_warps == 1 else 64, 32 * num_warps * 16
    block_k = run if channels_last else elements // run
    if itemsize < 8:
        block_k = min(block_k, next_power_of_2(c // num_splits))
    split = _slab_is_large(shape, num_splits, itemsize) or _slabs_are_few(shape, num_splits, num_sms)
    return LaunchConfig(
        split=split,
        block_w=block_w,
        block_c=32 * num_warps * per_lane // block_w,
        columns=1,
        strip_columns=1,
        block_p=elements // block_k,
        block_k=block_k,
        num_warps=num_warps,
        max_registers=max_registers,
        strip_rows=ROWS if split else 0,
    )


def regime_reason(
    config: LaunchConfig, shape: tuple[int, int, int, int], num_splits: int, itemsize: int, num_sms: int
) -> str:
    """The regime of this configuration, chosen above for x of this shape, and why, in words."""
    few = f"fewer than {PROGRAMS_PER_SM} slabs for each of {num_sms} multiprocessors"
    if config.split and _slab_is_large(shape, num_splits, itemsize):
        return f"split, two launches: a slab has more than {SLAB_BYTES // 1024} KiB"
    if config.split:
        return f"split, two launches: {few}"
    if _slabs_are_few(shape, num_splits, num_sms):
        return f"slab, one launch: {few}, but none has more than {ONE_LAUNCH_BYTES // 1024} KiB"
    return "slab, one launch: a program per slab"


def _slab_bytes(shape: tuple[int, int, int, int], num_splits: int, itemsize: int) -> int:
    _, c, h, w = shape
    return c // num_splits * h * w * itemsize


def _slab_is_large(shape: tuple[int, int, int, int], num_splits: int, itemsize: int) -> bool:
    return _slab_bytes(shape, num_splits, itemsize) > SLAB_BYTES


def _slabs_are_few(shape: tuple[int, int, int, int], num_splits: int, num_sms: int) -> bool:
    n, _, h, _ = shape
    return n * num_splits < PROGRAMS_PER_SM * num_sms and h > ROWS  # a map of one strip cannot be split


def _idle_quarter(group: int, block_c: int) -> bool:
    """Whether tiles of half as many channels would leave out a quarter of the channels handled, all idle."""
    return 4 * cdiv(group, block_c // 2) * (block_c // 2) <= 3 * cdiv(group, block_c) * block_c


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def chunk_pixels(w: int, config: LaunchConfig) -> int:
    """Pixels per program of a launch that sweeps: about ROWS rows, in whole tiles, so that accesses stay aligned."""
    return cdiv(min(max(config.strip_rows, 1), ROWS) * w, config.block_p) * config.block_p


def pass_pixels(h: int, w: int, slabs: int, config: LaunchConfig, num_sms: int) -> int:
    """Likewise in the flat passes of the backward with BatchNorm: about as many strips as fill the GPU."""
    strip_rows = min(config.strip_rows or ROWS, ROWS)
    wanted = cdiv(config.flat_programs * num_sms, slabs)  # programs per slab
    rows = max(cdiv(h, strip_rows) // wanted, 1) * strip_rows
    return cdiv(rows * w, config.block_p) * config.block_p
