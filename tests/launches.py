"""Launch configurations with tiles so small that small tensors have several of each."""

import dataclasses
from typing import Any

from ulsam_fused.kernels.config import LaunchConfig, forward_config

_CHOSEN = forward_config((1, 4, 4, 4), 1, itemsize=4, channels_last=False, num_sms=1)
_SMALL = dataclasses.replace(_CHOSEN, block_w=8, block_c=4, block_p=16, block_k=4, num_warps=1)


def slab(**changes: Any) -> LaunchConfig:
    """One launch, a program per slab."""
    return dataclasses.replace(_SMALL, split=False, strip_rows=0, **changes)


def split(strip_rows: int = 7, **changes: Any) -> LaunchConfig:
    """Two launches, a program per strip of rows. The forward needs strip_rows a multiple of 7."""
    return dataclasses.replace(_SMALL, split=True, strip_rows=strip_rows, **changes)
