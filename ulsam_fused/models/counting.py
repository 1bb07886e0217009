"""Parameters and multiply-accumulates of a model, as the paper counts them."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import flops, modules  # noqa: F401  flops registers what the fused operators cost

RULES = (
    "Counted are weights without biases and norms, and the multiply-accumulates of convolutions, linear layers and "
    "matrix products for one image."
)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


class Count(NamedTuple):
    """What a model costs."""

    weights: int  # without biases and norms
    parameters: int  # all of them
    macs: int  # multiply-accumulates for one image


def count(model: nn.Module, *shape: int) -> Count:
    """Count a model in eval mode on one input of this shape, without memory or time: on the meta device.

    Args:
        model: is left as it is.
        shape: of the input without the batch, [C, H, W].

    Source: the paper writes FLOPs for multiply-accumulates, and counts so: Saini et al., WACV 2020.
    """
    model = copy.deepcopy(model).to("meta").eval()
    for module in model.modules():
        if isinstance(module, modules.ULSAM):
            module.backend = "torch"  # the reference's steps are not the operator that is counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *shape, device="meta"))
    return Count(_weights(model), sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _weights(model: nn.Module) -> int:
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, NORMS)
        for name, parameter in module.named_parameters(recurse=False)
        if name != "bias" and not name.endswith("_bias")
    )
