"""The processes that train together, as torchrun starts them; or one alone."""

import os
import signal
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..console import devices


@dataclass(frozen=True)
class Processes:
    """This process among the others. What they tell each other goes by gloo, so that no GPU is waited for."""

    rank: int
    world: int
    device: torch.device
    control: Any

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, t: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        total = t.detach().cpu().clone()
        if self.world > 1:
            dist.all_reduce(total, group=self.control)
        return total

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, value: Any) -> Any:
        """The first process's value."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's running statistics, as DistributedDataParallel does before each step."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def start(device: str | None) -> Processes:
    """Join the processes that torchrun's variables tell of.

    Raises:
        UserError: no such device on this machine.
    """
    rank, local, world = (int(os.environ.get(name, default)) for name, default in
                          (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))  # fmt: skip
    chosen = devices.pick(device)
    if chosen.type == "cuda":
        if device in (None, "cuda"):
            chosen = devices.pick(f"cuda:{local}")
        torch.cuda.set_device(chosen)
    control = None
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        control = dist.new_group(backend="gloo")
    return Processes(rank, world, chosen, control)


def stop() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class Stop:
    """Whether SIGTERM has come to any of the processes: the same answer to all of them at the same step.

    The question goes round while the next step is computed, so the answer is one step old.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.asked = False
        self._pending: tuple[Any, Tensor] | None = None

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agreed(self) -> bool:
        """To be called by all processes equally often."""
        if self.processes.world == 1:
            return self.asked
        answer = False
        if self._pending is not None:
            work, told = self._pending
            work.wait()
            answer = bool(told.item())
        flag = torch.tensor([int(self.asked)])
        self._pending = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.processes.control, async_op=True), flag
        return answer
