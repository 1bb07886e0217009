"""Host side of the kernels: allocate what the plan of a call says, launch under the tensor's own device."""

from typing import Protocol

import torch
import triton
from torch import Tensor

from .forward import forward_kernel
from .launching.config import LaunchConfig
from .launching.geometry import device_of
from .launching.plans import backward_plan, forward_plan

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when they were imported)."""


class Group(Protocol):
    """Several processes with a part of the batch each, for the form with BatchNorm."""

    def gather(self, moments: Tensor) -> Tensor:
        """Of [P, 3, K], rows count, mean and M2: those of all processes, [P', 3, K] in the same order everywhere."""

    def sum(self, t: Tensor) -> Tensor:
        """A new tensor, the sum over all processes."""


def forward(
    x: Tensor,  # [N, C, H, W]
    scale: Tensor,  # [C]
    shift: Tensor | None,  # [C]
    v: Tensor,  # [C]
    b: Tensor | None,  # [g]
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    out_dtype: torch.dtype | None,
    need_attention: bool,
    need_lse: bool = True,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """y, A, z before act_z, and lse, A and lse None unless needed; one launch, or two when split."""
    plan = forward_plan(x.shape, x.stride(), x.dtype, x.device, num_splits, relu_u, relu_z, out_dtype, config)
    y = torch.empty_like(x) if out_dtype is None else torch.empty_like(x, dtype=out_dtype)
    z = x.new_empty_strided(*plan.z, dtype=plan.map_dtype)
    lse = z.new_empty_strided(*plan.lse) if need_lse else None
    attention = torch.empty_like(z) if need_attention else None
    tensors = (
        x, scale.contiguous(), None if shift is None else shift.contiguous(), v.contiguous(),
        None if b is None else b.contiguous(), y, attention, z, lse,
        None if plan.stats is None else z.new_empty_strided(*plan.stats),
    )  # fmt: skip
    with device_of(x):
        for launch in plan.launches:
            launch(tensors)
    return y, attention, z, lse


def backward(
    dy: Tensor | None,  # [N, C, H, W], any strides
    d_attention: Tensor | None,  # [N, g, H, W]
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    v: Tensor,
    b: Tensor | None,
    z: Tensor,  # [N, g, H, W]
    lse: Tensor,  # [N, g]
    num_splits: int,
    relu_u: bool,
    relu_z: bool,
    *,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """dx, dscale, dshift, dv, db; one launch, or two when split, and a sum over programs in a fixed order."""
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return (
            dx, torch.zeros_like(scale), None if shift is None else torch.zeros_like(shift), torch.zeros_like(v),
            None if b is None else torch.zeros_like(b),
        )  # fmt: skip
    given = x if dy is None else dy  # dy's strides are not read where dy is None
    plan = backward_plan(
        x.shape, x.stride(), x.dtype, x.device, given.stride(), given.dtype, num_splits, shift is not None, relu_u,
        relu_z, config,
    )  # fmt: skip
    partials = z.new_empty_strided(*plan.partials)
    tensors = (
        dy, None if d_attention is None else d_attention.contiguous(), x, scale.contiguous(),
        None if shift is None else shift.contiguous(), v.contiguous(), z, lse, dx, partials, torch.empty_like(z),
        z.new_empty_strided(*plan.scratch), None if plan.totals is None else z.new_empty_strided(*plan.totals),
    )  # fmt: skip
    with device_of(x):
        for launch in plan.launches:
            launch(tensors)
    # copies, since gradients must not share memory
    sums = torch.ops.aten.split_with_sizes_copy(partials.sum((0, 1)).to(scale.dtype), plan.sizes)
    db = None
    if b is not None:  # without act_z the softmax does not see b
        db = sums[-1] if relu_z else torch.zeros_like(b)
    return dx, sums[1], None if shift is None else sums[2], sums[0], db
