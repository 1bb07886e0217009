"""Optimizer, learning rate, mixed precision, and the moving average of the weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .options import Options

_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_Tensors = tuple[Tensor, ...] | list[Tensor]


def optimizer(model: nn.Module, args: Options) -> torch.optim.Optimizer:
    """SGD, or RMSprop with decay 0.9 and epsilon 1 as the first MobileNets had it (Howard et al. 2017)."""
    groups = parameter_groups(model, args.weight_decay, args.no_norm_decay)
    if args.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=args.lr, alpha=0.9, eps=1.0, momentum=args.momentum)
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)


def parameter_groups(model: nn.Module, weight_decay: float, no_norm_decay: bool) -> list[dict[str, Any]]:
    """All parameters in one group; with no_norm_decay, those of norms and all biases in a second one without decay.

    A ULSAM's weights are vectors, and they decay: module and name decide, not the number of dimensions.
    """
    if not no_norm_decay:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
            (spared if is_norm or name == "bias" or name.endswith("_bias") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def learning_rate(args: Options, steps: int) -> Callable[[int, int], float]:
    """The learning rate as a function of epoch and step; an epoch has `steps`. It has no state to save."""

    def rate(epoch: int, step: int) -> float:
        done = epoch + step / steps
        if done < args.warmup:
            return args.lr * (done * steps + 1) / (args.warmup * steps)
        if args.schedule == "step":
            return float(args.lr * 0.1 ** (epoch // args.step_epochs))
        share = (done - args.warmup) / max(args.epochs - args.warmup, 1)
        return args.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """Mixed precision of the type that `amp` names; "off" does nothing."""
    return torch.autocast(device.type, _HALF.get(amp), enabled=amp in _HALF)


def scaler(amp: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss for float16, which would lose small gradients. It does nothing for other types."""
    return torch.amp.GradScaler(device.type, enabled=amp == "float16")


class Average(AveragedModel):
    """An exponential moving average of a model's parameters and statistics, as the model `module`, in eval mode.

    The weights at the start count as the first of n that were averaged. The decay is min(decay, n / (n + 9)): it is
    small at first, so the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._blend, use_buffers=True)
        self.decay = decay
        self.update_parameters(model)
        self.eval().requires_grad_(False)

    def _blend(self, averages: _Tensors, values: _Tensors, _: object) -> None:
        if averages[0].is_floating_point():
            n = int(self.n_averaged)  # lies on the CPU: no GPU is waited for
            get_ema_multi_avg_fn(min(self.decay, n / (n + 9)))(averages, values, n)
        else:
            torch._foreach_copy_(averages, values)
