"""Optimizer, learning rate and mixed precision."""

import argparse
import contextlib
import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD, or RMSprop as the first MobileNets had it (decay 0.9, epsilon 1: Howard et al. 2017)."""
    groups = parameter_groups(model, args.weight_decay, args.no_norm_decay)
    if args.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=args.lr, alpha=0.9, eps=1.0, momentum=args.momentum)
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)


def parameter_groups(model: nn.Module, weight_decay: float, no_norm_decay: bool) -> list[dict[str, Any]]:
    """All parameters; those of norms and the biases in a group of their own where they are not to decay.

    A ULSAM's weights are vectors and decay all the same: the rule goes by module and name, not by dimension.
    """
    if not no_norm_decay:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, nn.modules.batchnorm._NormBase) or name == "bias" or name.endswith("_bias")
            groups[plain].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def learning_rate(args: argparse.Namespace, steps: int) -> Callable[[int, int], float]:
    """The learning rate as a function of epoch and step, of `steps` in an epoch: it has no state to be saved."""

    def rate(epoch: int, step: int) -> float:
        done = epoch + step / steps
        if done < args.warmup:
            return float(args.lr * (done * steps + 1) / (args.warmup * steps))
        if args.schedule == "step":
            return float(args.lr * 0.1 ** (epoch // args.step_epochs))
        share = (done - args.warmup) / max(args.epochs - args.warmup, 1)
        return float(args.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))

    return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if amp == "off" else torch.autocast(device.type, _HALF[amp])


def scaler(amp: str, device: torch.device) -> torch.amp.GradScaler:
    """float16 loses small gradients and needs one; else it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=amp == "float16")


class Average:
    """An exponential moving average of a model's parameters and statistics, in a copy of it that is in eval mode.

    In the beginning the decay is (1 + step) / (10 + step), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After training step `step`, counted over all epochs from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        floating = [(mine, new) for mine, new in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [new for _, new in floating], weight)
        for mine, new in pairs:
            if not mine.is_floating_point():
                mine.copy_(new)


def _state(model: nn.Module) -> Iterable[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
