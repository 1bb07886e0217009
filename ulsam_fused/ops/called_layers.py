"""Layers that the operator cannot stand for are called themselves, in eager PyTorch: right, and slower."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks


def with_called_norms(
    x: Tensor,  # [N, C, H, W]
    dw_weight: Tensor,  # [C]
    dw_bias: Tensor | None,  # [C]
    dw_norm: nn.Module,  # of [N, C, H, W]
    pw_weight: Tensor,  # [C]
    pw_bias: Tensor | None,  # [g]
    pw_norm: nn.Module,  # of [N, g, H, W]
    num_splits: int,
    *,
    relu: bool,
    pool_input: bool,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """y and A of `uf.ULSAM`, whatever its two norms are."""
    checks.check_arguments(x, dw_weight, pw_weight, num_splits, dw_bias, pw_bias)
    group = x.shape[1] // num_splits
    u = x * dw_weight.view(1, -1, 1, 1)
    u = dw_norm(u if dw_bias is None else u + dw_bias.view(1, -1, 1, 1))
    m = F.max_pool2d(x if pool_input else u.relu() if relu else u, kernel_size=3, stride=1, padding=1)
    z = (m * pw_weight.view(1, -1, 1, 1)).unflatten(1, (num_splits, group)).sum(2)
    z = pw_norm(z if pw_bias is None else z + pw_bias.view(1, -1, 1, 1))
    z = z.relu() if relu else z
    attention = z.flatten(2).softmax(2, dtype=torch.promote_types(z.dtype, torch.float32)).view_as(z)
    y = x * (1 + attention).repeat_interleave(group, dim=1)  # x first, whose memory format y takes
    return y.to(out_dtype or x.dtype), attention


@contextlib.contextmanager
def buffers_untouched(module: nn.Module, untouched: bool) -> Iterator[None]:
    """Inside, the module writes into copies of its buffers, if they are to stay untouched."""
    kept = [(m._buffers, dict(m._buffers)) for m in module.modules() if m._buffers and untouched]
    try:
        for held, own in kept:
            held.update({name: None if t is None else t.clone() for name, t in own.items()})
        yield
    finally:
        for held, own in kept:
            held.update(own)


def warn_once(layer: nn.Module, problem: str) -> None:
    """Say that the layer is slower than it could be, and why."""
    if not (layer.__dict__.get("_warned") or torch.compiler.is_compiling()):
        layer._warned = True  # type: ignore[assignment]
        warnings.warn(
            f"{type(layer).__name__} calls its layers one by one in eager PyTorch, which is several times slower than "
            f"its fused operator: {problem}",
            stacklevel=4,
        )
