"""A script: `python -m ulsam_fused.train` that sends itself SIGTERM. Arguments: when, and the command's.

When: RANK:EPOCH:STEP, in training; RANK:test, in the first evaluation; never.
"""

import os
import signal
import sys

from torch import Tensor, nn

from ulsam_fused.train.__main__ import main
from ulsam_fused.train.loop import Loop
from ulsam_fused.train.metrics import Totals

_step, _score = Loop._step, Loop._score


def terminated(when: str) -> None:
    """Let the training of this process send itself SIGTERM."""

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


if __name__ == "__main__":
    terminated(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
