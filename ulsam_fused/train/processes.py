"""The processes that train together, as torchrun starts them; or one alone."""

import os
import signal
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..console import devices

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among the others. They exchange values over gloo, on the CPU, so no GPU has to wait."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None  # the gloo group; None for one process alone

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

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, value: T) -> T:
        """The first process's value."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, group=self.control)
        (shared,) = values
        return shared

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the first process's running statistics to all, as DistributedDataParallel does before each step."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def start(device: str | None) -> Processes:
    """Join the processes that torchrun's environment variables describe.

    Raises:
        UserError: this machine has no such device.
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
    """Leave the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
"""What asks a training to save and stop; Windows has no SIGHUP."""


class Stop:
    """Whether any process has received one of SIGNALS. All processes get the same answer at the same step.

    They exchange it while the next step is computed, so with several processes it comes one step late.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.asked = 0  # the signal's number
        self._pending: tuple[dist.Work | None, Tensor] | None = None

    def listen(self) -> None:
        """Take note of signals from now on, but for those that somebody, `nohup` for one, has set to be ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.ask)

    def ask(self, number: int = signal.NSIG, frame: FrameType | None = None) -> None:
        """Stop all processes; as a handler of signals, or for another reason."""
        self.asked = number

    def name(self) -> str:
        """What a process received."""
        return signal.Signals(self.asked).name

    def agreed(self) -> bool:
        """The answer. All processes must call this equally often."""
        if self.processes.world == 1:
            return bool(self.asked)
        answer = False
        if self._pending is not None:
            work, flag = self._pending
            if work is not None:
                work.wait()
            answer = bool(flag.item())
            self.asked = max(self.asked, int(flag.item()))
        flag = torch.tensor([self.asked])
        self._pending = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.processes.control, async_op=True), flag
        return answer
