"""Storages of tensors, and who touched what when.

Global addresses are invented: every storage lies in a terabyte of its own, so that an access astray hits nothing,
whatever lies beside the tensor on this machine. Low bits are those of the real address.
"""

import ctypes
import dataclasses
from typing import Any

import numpy as np

SEGMENT = 40  # bits of an offset in a storage
LARGEST = 1 << 28  # bytes of a storage that is watched


class Shadow:
    """Who touched each element last, and when; -1: nobody."""

    def __init__(self, size: int) -> None:
        self.w_time, self.r_time, self.w_lane, self.r_lane, self.r_first = (
            np.full(size, -1, np.int32) for _ in range(5)
        )  # r_first: the first of the reads since the reader's last barrier
        self.agreed = np.zeros(size, bool)  # several programs have written the same value


@dataclasses.dataclass
class Written:
    """What has been written of a storage that nothing filled."""

    storage: object  # kept, so that its address stays its own
    elements: np.ndarray  # of bool
    itemsize: int


class Segment:
    """The storage of a tensor."""

    def __init__(self, name: str, pointer: int, nbytes: int, itemsize: int, written: Written | None = None) -> None:
        assert pointer % 16 == 0 or nbytes == 0
        assert written is None or written.itemsize == itemsize
        self.name, self.pointer, self.nbytes, self.itemsize = name, pointer, nbytes, itemsize
        raw = bytes_at(pointer, nbytes)
        self.mem = {s: raw[: nbytes // s * s].view(f"u{s}") for s in (1, 2, 4, 8)}
        self.initialised = None if written is None else written.elements
        self._shadow: Shadow | None = None

    def shadow(self) -> Shadow | None:
        """None where the storage is too large to be watched."""
        if self._shadow is None and self.nbytes <= LARGEST:
            self._shadow = Shadow(-(-self.nbytes // self.itemsize))
        return self._shadow

    def elements(self, offset: np.ndarray, width: int) -> np.ndarray:
        """Which elements so many bytes at these offsets cover [lanes, elements]."""
        return (offset // self.itemsize)[:, None] + np.arange(max(width // self.itemsize, 1))


def bytes_at(pointer: int, nbytes: int) -> np.ndarray:
    raw: Any = (ctypes.c_uint8 * nbytes).from_address(pointer) if nbytes else b""
    return np.frombuffer(raw, np.uint8)
