"""What the compiled kernels may cost. `benchmarks/compiled/resources.py` counts; tests hold the counts to the budgets.

The instructions of a march are those that one lane issues in one turn of the longest loop, per element that the lane
handles in that turn. Each budget is a tenth above the largest count over all shipped configurations (sm_80, sm_90,
sm_100; Triton 3.6, 3.7.1, 3.9). While memory moves one element, an H200 can issue 31 instructions per float16 element
forward and 47 backward, for everything in a kernel.
"""

from typing import TypedDict

MIN_WARPS_PER_SM = 8  # resident; fewer cannot hide the latency of memory
MAX_BARRIERS = 0  # in one turn of the march; one is a tile that changes its layout for an access

_LIKE_FORWARD = ("norm_forward", "folded")  # the same march

# (direction, bytes per element of the type) -> instructions per element
MAX_MARCH = {("forward", 2): 28, ("forward", 4): 26, ("forward", 8): 117}
MAX_MARCH |= {("backward", 2): 100, ("backward", 4): 90, ("backward", 8): 320}
MAX_MARCH |= {("norm_backward", size): MAX_MARCH["backward", size] for size in (2, 4, 8)}  # the same march
MAX_MARCH |= {(direction, size): MAX_MARCH["forward", size] for direction in _LIKE_FORWARD for size in (2, 4, 8)}
MAX_MOMENTS = {2: 13, 4: 18, 8: 32}  # the sweep over x for its moments
MAX_MOMENTS_NARROW = 46  # where accesses have less than 16 bytes; 26 on Triton 3.7.1 and 3.9
MAX_SWEEP = {2: 13, 4: 16, 8: 12}  # the forward's second sweep; 4 bytes: 14.4 where it is a whole map, else below 10

FLOOR = {("forward", 2): 31, ("forward", 4): 62, ("backward", 2): 47, ("backward", 4): 93}
"""Instructions per element that an H200 can issue while memory, at 4.3 TB/s, moves the fewest bytes of that pass."""


class Resources(TypedDict):
    """One compiled kernel; a row of the table and of the JSON file."""

    case: str
    arch: int
    kernel: str
    registers: int
    stack: int  # bytes per thread; not 0 means spills
    spills: int  # loads and stores of local memory in the code
    shared: int  # bytes per program
    warps_per_sm: int  # resident, as registers and shared memory allow
    barriers: int  # in the hottest loop
    load_bytes: int  # widest load and store of global memory, bytes per lane
    store_bytes: int
    march: float  # lane-instructions per element of the row march, or of the sweep for moments
    sweep: float  # lane-instructions per element of the forward's second sweep
    nan_maximum: bool  # the maximum keeps NaN


_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def over_floor(row: Resources) -> float | None:
    """A march's instructions over those that memory leaves time for; None where no floor is known."""
    direction, dtype, *_ = row["case"].split()
    pass_ = "backward" if direction.endswith("backward") else "forward"
    floor = FLOOR.get((pass_, _BYTES[dtype]))
    return None if floor is None or not row["march"] or row["kernel"] == "moments" else row["march"] / floor


def violations(row: Resources) -> list[str]:
    """The budgets that a kernel exceeds, in words."""
    direction, dtype, *_ = row["case"].split()
    limit = MAX_MARCH[direction, _BYTES[dtype]]
    if row.get("kernel") == "moments":
        limit = MAX_MOMENTS[_BYTES[dtype]] if row["load_bytes"] == 16 else MAX_MOMENTS_NARROW
    found = []
    if row["spills"] or row["stack"]:
        found.append(f"{row['spills']} spills, {row['stack']} bytes of stack")
    if row["warps_per_sm"] < MIN_WARPS_PER_SM:
        found.append(f"{row['warps_per_sm']} warps per SM, fewer than {MIN_WARPS_PER_SM}")
    if row["march"] > limit:
        found.append(f"{row['march']} instructions per element, more than {limit}")
    if row["sweep"] > MAX_SWEEP[_BYTES[dtype]]:
        found.append(
            f"{row['sweep']} instructions per element in the second sweep, more than {MAX_SWEEP[_BYTES[dtype]]}"
        )
    if row["march"] and row["barriers"] > MAX_BARRIERS:
        found.append(f"{row['barriers']} barriers in the march, more than {MAX_BARRIERS}")
    return found
