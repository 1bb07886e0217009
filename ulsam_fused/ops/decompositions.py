"""What the operators are made of, for programs that other runtimes load: `uf.decompositions`.

The ONNX exporter gets them unasked. Compilers and exported programs keep the operators.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.contract import Inputs, NormInputs, Options
from . import plain, tracing
from .registration import Cancelled, filled, grouped


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """For `program.run_decompositions(uf.decompositions())`: a `torch.export` program of ATen operators alone.

    Every runtime that reads exported programs can load it, and it needs this package no longer. It is PyTorch's table
    (`torch.export.default_decompositions()`), with the forward operators of this package. Decompose before a backward
    is made: the program trains by PyTorch's own derivatives, slower than the fused ones.
    """
    table = torch.export.default_decompositions()
    table.update(_DECOMPOSITIONS)
    return table


def _forward(*flat: Any) -> tuple[Tensor, ...]:
    inputs, options = grouped(flat, Inputs, Options)
    found = plain.forward(inputs, options)
    attention = found.attention if options.need_attention else None
    lse = found.lse if options.need_lse else None
    return found.y, filled(attention, found.z), found.z, filled(lse, found.z)


def _norm_forward(*flat: Any) -> tuple[Tensor, ...]:
    inputs, _, options = grouped(flat, NormInputs, Cancelled, Options)
    found = plain.norm_forward(inputs, options)
    return tuple(
        filled(t, found.z) for t in found._replace(attention=found.attention if options.need_attention else None)
    )


_DECOMPOSITIONS = {
    torch.ops.ulsam_fused.forward.default: _forward,
    torch.ops.ulsam_fused.norm_forward.default: _norm_forward,
}
for _operator, _decomposition in _DECOMPOSITIONS.items():
    tracing.decompose_for_onnx(_operator, _decomposition)
