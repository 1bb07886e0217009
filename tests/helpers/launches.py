"""Launch configurations with tiles so small that small tensors have several of each, and what calls launch."""

import collections
import dataclasses
from typing import Any

import pytest
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig, forward_config

_CHOSEN = forward_config((1, 4, 4, 4), 1, itemsize=4, channels_last=False, num_sms=1)
_SMALL = dataclasses.replace(_CHOSEN, block_w=8, block_c=4, block_p=16, block_k=4, num_warps=1, whole_map=False)


def slab(**changes: Any) -> LaunchConfig:
    """One launch, a program per slab."""
    return dataclasses.replace(_SMALL, split=False, strip_rows=0, **changes)


def whole(**changes: Any) -> LaunchConfig:
    """Likewise, and a tile is a whole map of at most 8 columns."""
    return slab(whole_map=True, **changes)


def split(strip_rows: int = 7, **changes: Any) -> LaunchConfig:
    """Two launches, a program per strip of rows. The forward needs strip_rows a multiple of 7."""
    return dataclasses.replace(_SMALL, split=True, strip_rows=strip_rows, **changes)


def count_launches(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each kernel is launched from here on, by the kernel's name."""
    from ulsam_fused.kernels.gpu.launching.launch import Launch  # needs Triton

    counts: collections.Counter[str] = collections.Counter()
    original = Launch.__call__

    def launch(self: Launch, *arguments: Any) -> None:
        counts[self.kernel.__name__] += 1
        original(self, *arguments)

    monkeypatch.setattr(Launch, "__call__", launch)
    return counts
