"""The door of the Triton kernels for the general form: allocate what the plan of a call says, and launch.

See `contract.Backend` for shapes. Both directions run under the tensor's own device. `config` is for tests and
measurements; by default the plan chooses.
"""

import torch
import triton
from torch import Tensor

from ..contract import Forward, Gradients, Inputs, Options
from .forward import forward_kernel
from .launching.config import LaunchConfig
from .launching.geometry import device_of
from .launching.plans import backward_plan, forward_plan

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when they were imported)."""


def forward(inputs: Inputs, options: Options, *, config: LaunchConfig | None = None) -> Forward:
    """One launch, or two when split."""
    x, scale, shift, v, b = inputs
    plan = forward_plan(x.shape, x.stride(), x.dtype, x.device, options, config)
    y = torch.empty_like(x) if options.out_dtype is None else torch.empty_like(x, dtype=options.out_dtype)
    z = x.new_empty_strided(*plan.z, dtype=plan.map_dtype)
    lse = z.new_empty_strided(*plan.lse) if options.need_lse else None
    attention = torch.empty_like(z) if options.need_attention else None
    tensors = (
        x, scale.contiguous(), None if shift is None else shift.contiguous(), v.contiguous(),
        None if b is None else b.contiguous(), y, attention, z, lse,
        None if plan.stats is None else z.new_empty_strided(*plan.stats),
    )  # fmt: skip
    with device_of(x):
        for launch in plan.launches:
            launch(tensors)
    return Forward(y, attention, z, lse)


def backward(
    dy: Tensor | None,
    d_attention: Tensor | None,
    inputs: Inputs,
    z: Tensor,
    lse: Tensor,
    options: Options,
    *,
    config: LaunchConfig | None = None,
) -> Gradients:
    """One launch, or two when split, and a sum over programs in a fixed order."""
    x, scale, shift, v, b = inputs
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return Gradients(
            dx, torch.zeros_like(scale), None if shift is None else torch.zeros_like(shift), torch.zeros_like(v),
            None if b is None else torch.zeros_like(b),
        )  # fmt: skip
    given = x if dy is None else dy  # dy's strides are not read where dy is None
    plan = backward_plan(
        x.shape, x.stride(), x.dtype, x.device, given.stride(), given.dtype, options, shift is not None, config
    )
    partials = z.new_empty_strided(*plan.partials)
    tensors = (
        dy, None if d_attention is None else d_attention.contiguous(), x, scale.contiguous(),
        None if shift is None else shift.contiguous(), v.contiguous(), z, lse, dx, partials,
        *[None if a is None else z.new_empty_strided(*a) for a in (plan.da, plan.scratch, plan.totals)],
    )  # fmt: skip
    with device_of(x):
        for launch in plan.launches:
            launch(tensors)
    # copies, since gradients must not share memory
    dv, dscale, *rest = torch.ops.aten.split_with_sizes_copy(partials.sum((0, 1)).to(scale.dtype), plan.sizes)
    dshift = None if shift is None else rest[0]
    db = None
    if b is not None:  # without act_z the softmax does not see b
        db = rest[-1] if options.relu_z else torch.zeros_like(b)
    return Gradients(dx, dscale, dshift, dv, db)
