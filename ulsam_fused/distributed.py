"""Statistics of a batch that several processes share: torch.nn.SyncBatchNorm for this layer, on any device."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes that share a batch; `process_group` None is the default one."""

    process_group: "dist.ProcessGroup | None"

    def gather(self, moments: Tensor) -> Tensor:
        """[P, 3, C] of this process -> [processes * P, 3, C] of all, in the order of ranks."""
        moments = moments.contiguous()
        parts = [torch.empty_like(moments) for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather(parts, moments, group=self.process_group)
        return torch.cat(parts)

    def sum(self, t: Tensor) -> Tensor:
        """The sum over all processes, as a new tensor."""
        total = t.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.process_group)
        return total


class SharesBatch:
    """A layer whose norms can share their batch's statistics with other processes: see `sync_batchnorm`."""

    synchronised = False
    process_group: "dist.ProcessGroup | None" = None


def group_of(
    norms: tuple[nn.Module, nn.Module], synchronised: bool, process_group: "dist.ProcessGroup | None"
) -> Group | None:
    """The processes that a layer's norms in training mode share their batch with; None where they are alone.

    They share it where they were converted to torch.nn.SyncBatchNorm, or their layer by `sync_batchnorm`.
    """
    if not (norms[0].training or norms[1].training):
        return None
    converted = [norm for norm in norms if isinstance(norm, nn.SyncBatchNorm)]
    if not (synchronised or converted):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if converted and not synchronised:
        process_group = converted[0].process_group
        if len(converted) != len(norms) or converted[1].process_group is not process_group:
            raise ValueError("both norms of a layer must be synchronised, and with the same processes")
    return Group(process_group) if dist.get_world_size(process_group) > 1 else None


def sync_batchnorm(model: nn.Module, process_group: "dist.ProcessGroup | None" = None) -> nn.Module:
    """Make every fused layer with norms in `model` share its batch's statistics with other processes, on any device.

    Where processes train one model with torch.nn.parallel.DistributedDataParallel or FSDP, the sums of both norms are
    reduced over the processes, forward and backward: the results are those of one process on the joined batch. Other
    BatchNorm layers of the model are left alone; `torch.nn.SyncBatchNorm.convert_sync_batchnorm` converts those and
    these alike, but it serves GPUs only.

    Args:
        model: changed in place.
        process_group: of torch.distributed; None is the default group.

    Returns:
        model.
    """
    for module in model.modules():
        if isinstance(module, SharesBatch):
            module.synchronised, module.process_group = True, process_group
    return model
