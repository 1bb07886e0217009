"""A script: `python -m ulsam_fused.train`, perhaps several times, that sends itself SIGTERM.

    train_script.py WHEN OPTIONS… [-- WHEN OPTIONS…]…

WHEN is RANK:EPOCH:STEP, in training; RANK:test, in an evaluation; or never. The exit code is the last training's; with
several, each one's is printed.
"""

import itertools
import os
import signal
import sys

import torch.distributed as dist
from torch import Tensor, nn

from ulsam_fused.train import processes
from ulsam_fused.train.__main__ import main
from ulsam_fused.train.loop import Loop
from ulsam_fused.train.metrics import Totals

_step, _score = Loop._step, Loop._score


def terminated(when: str) -> None:
    """Let every training of this process from now on send itself SIGTERM at this moment."""

    def check(self: Loop, place: str) -> None:
        if when == f"{self.processes.rank}:{place}":
            os.kill(os.getpid(), signal.SIGTERM)

    def step(self: Loop, epoch: int, step: int, x: Tensor, labels: Tensor, totals: Totals) -> Tensor:
        check(self, f"{epoch}:{step}")
        return _step(self, epoch, step, x, labels, totals)

    def score(self: Loop, model: nn.Module, x: Tensor, labels: Tensor, totals: Totals) -> None:
        check(self, "test")
        _score(self, model, x, labels, totals)

    Loop._step, Loop._score = step, score  # type: ignore[method-assign]


def _nothing(*_: object) -> None:
    pass


def run(words: list[str]) -> int:
    """All trainings of a command line; the last one's exit code."""
    code = 0
    trainings = [list(group) for is_end, group in itertools.groupby(words, "--".__eq__) if not is_end]
    if len(trainings) > 1:
        processes.stop = _nothing  # the processes meet only once, because torchrun has one rendezvous
    for when, *options in trainings:
        terminated(when)
        code = main(options)
        if len(trainings) > 1:
            print(f"exit code {code}", flush=True)
            dist.init_process_group = _nothing  # type: ignore[assignment]
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
