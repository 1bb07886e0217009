"""The model as a training uses it: where it lies, and how processes share it."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import sync_batchnorm
from .options import Options
from .processes import Processes


def place(model: nn.Module, args: Options, device: torch.device) -> nn.Module:
    """The model on the device, in the memory format and with the norms that were asked for."""
    if args.sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif args.sync_bn:
        sync_batchnorm(model)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    return cast(nn.Module, model.to(device=device, memory_format=layout))  # type: ignore[call-overload]


def wrap(model: nn.Module, args: Options, processes: Processes) -> Callable[[Tensor], Tensor]:
    """What a training step calls: the model in DistributedDataParallel if there are others, and compiled if asked."""
    if processes.world > 1:
        index = processes.device.index
        model = DistributedDataParallel(model, device_ids=None if index is None else [index])
    return torch.compile(model) if args.compile else model
