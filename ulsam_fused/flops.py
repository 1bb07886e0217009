"""FLOPs of the fused operators for `torch.utils.flop_counter.FlopCounterMode`: importing this module registers them.

Counted is what PyTorch counts of the same layers in eager mode, the two convolutions, two FLOPs for a
multiply-accumulate: 4 * N * C * H * W whatever num_splits, and twice that backward. (There PyTorch takes the gradient
of depthwise weights for that of a dense convolution, and counts more.) Max-pool, softmax and reweighting are not
counted, nor are they there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .ops import registration  # noqa: F401  it defines the operators

_OPERATORS = torch.ops.ulsam_fused


@register_flop_formula([_OPERATORS.forward, _OPERATORS.norm_forward])
def forward_flops(x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """x_shape: [N, C, H, W]."""
    return 4 * math.prod(x_shape)


@register_flop_formula([_OPERATORS.backward, _OPERATORS.norm_backward])
def backward_flops(dy_shape: Any, d_attention_shape: Any, x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """For the gradients of the input and of the weights each as many as forward."""
    return 8 * math.prod(x_shape)
