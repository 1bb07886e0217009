"""What PyTorch is doing with the present call.

Private names of torch are touched here, where each has a fallback, in `values` and in `ulsam_fused.flops`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import flops
from . import values

Way = Literal["reference", "plain", "operator", "direct"]

_mode_depth: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_in_functorch: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_in_jit_trace: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]


def way_of(tensors: Sequence[Tensor | None], accepted: bool = False) -> Way:
    """Which way a call of these tensors takes, x first; `accepted` ones were found plainly valid by `checks`.

    reference   under torch.func transforms and forward-mode AD, which see through ordinary PyTorch only
    plain       under torch.jit.trace, which the older ONNX exporter takes, for the same reason: in the fewest steps
    operator    under compilation, export, a dispatch mode; for tensors that only the dispatcher understands; on meta
    direct      else: the backend is called past the dispatcher, which saves its time
    """
    if torch.compiler.is_compiling():  # compilers trace transforms, too; in the default ONNX exporter, which decomposes
        return "reference" if transformed() else "operator"
    if transformed():
        return "reference"
    if _in_jit_trace() or _onnx_export()():
        return "plain"
    return "operator" if _watched(tensors, accepted) else "direct"


def way_back(way: Way, *arriving: Tensor | None) -> Way:
    """Which way the backward takes; `way` is the forward's, and `arriving` are the gradients of its results."""
    if torch.compiler.is_compiling():
        return "operator"
    if torch.is_grad_enabled() or transformed():
        return "reference"
    return "operator" if _watched(arriving, accepted=False) or way == "operator" else "direct"


def needs_op(tensors: Sequence[Tensor | None], accepted: bool = False) -> bool:
    """Whether the registered operator must be called, by who knows already that plain PyTorch is not asked for."""
    return torch.compiler.is_compiling() or _watched(tensors, accepted)


def transformed() -> bool:
    """Whether torch.func transforms this call, or forward-mode AD may have tangents that belong to its tensors."""
    return forward_ad._current_level >= 0 or _in_functorch()


def _watched(tensors: Sequence[Tensor | None], accepted: bool) -> bool:
    if _mode_depth() > 0:
        flops.teach()
        return True
    if not accepted:
        return any(map(values.unusual, tensors))
    x = tensors[0]
    return x is None or x.is_meta or values.negated(tensors)


@functools.lru_cache(maxsize=1)
def _onnx_export() -> Callable[[], bool]:
    """`torch.onnx.is_in_onnx_export`, without the 3 microseconds of imports in every call of it."""
    try:
        from torch.onnx._internal.exporter import _flags
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        return torch.onnx.is_in_onnx_export
    return lambda: GLOBALS.in_onnx_export or getattr(_flags, "_is_onnx_exporting", False)


def decompose_for_onnx(operator: torch._ops.OpOverload, decomposition: Callable[..., Any]) -> None:
    """Give the ONNX exporter, which knows standard operators only, the decomposition where it meets the operator.

    PyTorch's table of decompositions is no place for it: FakeTensor and TorchInductor read that table as well.
    Without PyTorch's mode, the exporter asks for `run_decompositions` first.
    """
    try:
        from torch._subclasses.functional_tensor import FunctionalTensorMode
    except ImportError:
        return

    def dispatch(
        mode: FunctionalTensorMode,
        operator: torch._ops.OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not _onnx_export()():
            return mode.__torch_dispatch__(operator, types, args, kwargs)
        with mode:
            return decomposition(*args, **kwargs)

    torch.library.register_torch_dispatch(operator.name(), FunctionalTensorMode, dispatch)
