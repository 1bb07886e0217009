"""FLOPs of the fused operators for `torch.utils.flop_counter.FlopCounterMode`.

Counted is what PyTorch counts of the same layers in eager mode, the two convolutions, two FLOPs for a
multiply-accumulate: 4 * N * C * H * W whatever num_splits, and twice that backward. (There PyTorch takes the gradient
of depthwise weights for that of a dense convolution, and counts more.) Max-pool, softmax and reweighting are not
counted, nor are they there.

`teach` runs where a mode looks on. PyTorch's module may bring Triton, so it is not imported here.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch


def forward_flops(x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """x_shape: [N, C, H, W]."""
    return 4 * math.prod(x_shape)


def backward_flops(dy_shape: Any, d_attention_shape: Any, x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """For the gradients of the input and of the weights each as many as forward."""
    return 8 * math.prod(x_shape)


def teach() -> None:
    """Give the formulas to PyTorch's registry, and to every counter that looks on and was made before."""
    counters: Any = sys.modules.get("torch.utils.flop_counter")
    if counters is None:
        return
    operators, registry = torch.ops.ulsam_fused, counters.flop_registry
    if operators.forward not in registry:
        counters.register_flop_formula([operators.forward, operators.norm_forward])(forward_flops)
        counters.register_flop_formula([operators.backward, operators.norm_backward])(backward_flops)
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, counters.FlopCounterMode):
            for name in ("forward", "norm_forward", "backward", "norm_backward"):
                counter.flop_registry.setdefault(getattr(operators, name), registry[getattr(operators, name)])
