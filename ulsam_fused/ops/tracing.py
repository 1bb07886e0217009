"""What PyTorch is doing with the present call.

The only file that touches private names of torch; each has a fallback.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import PLAIN

Way = Literal["reference", "plain", "operator", "direct"]

_mode_depth: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_in_functorch: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_in_jit_trace: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]


def way_of(x: Tensor) -> Way:
    """Which way a call with this input takes.

    reference   under torch.func transforms, which see through ordinary PyTorch only
    plain       under torch.jit.trace, which the older ONNX exporter takes, for the same reason: in the fewest steps
    operator    under compilation, export, a dispatch mode; for a tensor subclass and on meta
    direct      else: the backend is called past the dispatcher, which saves its time
    """
    if torch.compiler.is_compiling():  # in the default ONNX exporter too, which decomposes what it captured
        return "operator"
    if _in_functorch():
        return "reference"
    if _in_jit_trace() or _onnx_export()():
        return "plain"
    return "operator" if _watched(x) else "direct"


def needs_op(x: Tensor) -> bool:
    """Whether the registered operator must be called, by who knows already that plain PyTorch is not asked for."""
    return torch.compiler.is_compiling() or _watched(x)


def _watched(x: Tensor) -> bool:
    return type(x) not in PLAIN or _mode_depth() > 0 or x.is_meta


@functools.lru_cache(maxsize=1)
def _onnx_export() -> Callable[[], bool]:
    """`torch.onnx.is_in_onnx_export`, without the 3 microseconds of imports in every call of it."""
    try:
        from torch.onnx._internal.exporter import _flags
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        return torch.onnx.is_in_onnx_export
    return lambda: GLOBALS.in_onnx_export or getattr(_flags, "_is_onnx_exporting", False)


def publish_decompositions(decompositions: Mapping[torch._ops.OpOverload, Callable[..., Any]]) -> None:
    """Put them where the ONNX exporter looks; without these tables it asks for `run_decompositions` first.

    FakeTensor would prefer a decomposition to an operator's own fake, unless the operator stands in the meta table.
    """
    try:
        from torch._decomp import decomposition_table, meta_table
    except ImportError:
        return
    for operator, decomposition in decompositions.items():
        meta_table[operator] = decomposition
        decomposition_table[operator] = decomposition
