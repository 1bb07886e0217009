"""Two modules trained side by side in float64: do they stay the same?"""

import torch
from torch import Tensor, nn

from tests.helpers.authors import assert_close, step


def assert_same_training(
    theirs: nn.Module, ours: nn.Module, channels: int, steps: int = 3, device: str = "cpu"
) -> None:
    """y - x, dx - dy, the changes of all weights and all buffers agree over some steps, and then y - x in eval mode.

    Their state dicts must list the same tensors in the same order; names may differ. Modes are left as they are.
    """
    before = [t.detach().clone() for t in tensors(theirs)]
    assert len(before) == len(tensors(ours))
    data = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, dy = torch.randn(2, 2, channels, 5, 4, generator=data, dtype=torch.float64).to(device)
        results = [step(module, x, dy) for module in (theirs, ours)]
        (y, dx), (our_y, our_dx) = results
        assert (y - x).norm() > 1e-3 * x.norm(), "nothing to compare"
        assert_close("y - x", our_y - x, y - x)
        assert_close("dx - dy", our_dx - dy, dx - dy)
        with torch.no_grad():
            for module in (theirs, ours):
                for parameter in module.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=0.01)
    changed = 0
    for name, start, t, our_t in zip(theirs.state_dict(), before, tensors(theirs), tensors(ours), strict=True):
        assert_close(name, our_t.double() - start, t.double() - start, absolute=1e-11)
        changed += bool((t.double() - start).norm() > 1e-6)
    assert changed > 0, "nothing was trained"
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        assert_close("y - x in eval", ours(x) - x, theirs(x) - x)


def tensors(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())
