"""Allocations between guards, which show a stray read or write: Triton itself checks no bounds."""

from typing import Any

import pytest
import torch
from torch import Tensor

MARGIN = 4096  # bytes before and after every tensor, which keep its alignment
PATTERN = 0xA5


class Guards:
    """Allocates tensors between guards, and knows whether the guards still stand."""

    def __init__(self) -> None:
        # all bytes of a buffer, and what they must still be: -1 where a kernel may change them
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.made: list[Tensor] = []  # all that was allocated

    def empty(self, tensor: Tensor) -> Tensor:
        """A tensor of NaN with the shape, type and strides of this dense one."""
        size = tensor.numel() * tensor.element_size()
        buffer = torch.full((2 * MARGIN + size,), PATTERN, dtype=torch.uint8, device=tensor.device)
        promised = buffer.to(torch.int16)
        promised[MARGIN : MARGIN + size] = -1
        self.buffers.append((buffer, promised))
        self.made.append(_view(buffer, tensor).fill_(torch.nan))
        return self.made[-1]

    def constant(self, tensor: Tensor | None) -> Tensor | None:
        """A copy that nothing may change. NaN surrounds it."""
        if tensor is None:
            return None
        margin = MARGIN // tensor.element_size()
        flat = torch.full((2 * margin + tensor.numel(),), torch.nan, dtype=tensor.dtype, device=tensor.device)
        buffer = flat.view(torch.uint8)
        copy = _view(buffer, tensor).copy_(tensor)
        self.buffers.append((buffer, buffer.to(torch.int16)))
        return copy

    def unwritten(self) -> list[tuple[int, ...]]:
        """The shapes of allocated tensors of which some element still is NaN."""
        return [tuple(t.shape) for t in self.made if t.isnan().any()]

    def stand(self) -> bool:
        return all(bool(((buffer == promised) | (promised == -1)).all()) for buffer, promised in self.buffers)


def _view(buffer: Tensor, tensor: Tensor) -> Tensor:
    flat = buffer[MARGIN:-MARGIN].view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset())


def guard_allocations(monkeypatch: pytest.MonkeyPatch) -> Guards:
    """From here on, every tensor that is allocated without values lies between guards."""
    guards = Guards()
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ):
        allocate = getattr(owner, name)

        def guarded(*arguments: Any, allocate: Any = allocate, **options: Any) -> Tensor:
            allocated = allocate(*arguments, **options)
            return allocated if allocated.is_meta else guards.empty(allocated)  # a meta tensor has no memory

        monkeypatch.setattr(owner, name, guarded)
    return guards
