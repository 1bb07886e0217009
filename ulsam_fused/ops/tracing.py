"""What PyTorch is doing with the present call.

The only file that touches private names of torch; each has a fallback.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import PLAIN

_mode_depth: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_in_functorch: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_in_jit_trace: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]


def needs_op(x: Tensor) -> bool:
    """True where the registered operator must be called: compilation, export, a dispatch mode, a tensor subclass, meta.

    Elsewhere the launcher is called directly, which saves the dispatcher's time.
    """
    return torch.compiler.is_compiling() or type(x) not in PLAIN or _mode_depth() > 0 or x.is_meta


def needs_plain_pytorch() -> bool:
    """True under torch.func transforms, torch.jit.trace and ONNX export, which see through ordinary PyTorch only."""
    if torch.compiler.is_compiling():
        return False
    return bool(_in_functorch() or _in_jit_trace() or _onnx_export()())


@functools.lru_cache(maxsize=1)
def _onnx_export() -> Callable[[], bool]:
    """`torch.onnx.is_in_onnx_export`, without the 3 microseconds of imports in every call of it."""
    try:
        from torch.onnx._internal.exporter import _flags
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        return torch.onnx.is_in_onnx_export
    return lambda: GLOBALS.in_onnx_export or getattr(_flags, "_is_onnx_exporting", False)
