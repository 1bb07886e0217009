"""Parameters and multiply-accumulates of a model, as the paper counts them."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import modules

RULES = (
    "Counted are weights without biases and norms, and the multiply-accumulates of convolutions, linear layers and "
    "matrix products for one image."
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


class Count(NamedTuple):
    """What a model costs."""

    weights: int  # without biases and norms
    parameters: int  # all of them
    macs: int  # multiply-accumulates for one image


def count(model: nn.Module, *shape: int) -> Count:
    """Count a copy of the model in eval mode, on the meta device, where nothing is computed.

    Args:
        model: any module that takes one image.
        shape: C, H and W of the image.

    Source: Saini et al., WACV 2020, who count the same way and call multiply-accumulates FLOPs.
    """
    model = copy.deepcopy(model).to("meta").eval()
    for module in model.modules():
        if isinstance(module, modules.ULSAM):
            module.backend = "torch"  # other backends are counted differently
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *shape, device="meta"))
    return Count(_weights(model), sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _weights(model: nn.Module) -> int:
    """Elements of all parameters but biases and those of norms."""
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False)
        if name != "bias" and not name.endswith("_bias")
    )
