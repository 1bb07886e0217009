"""Start from the weights of another training."""

import pathlib

import torch

from ..console import weights
from ..console.errors import UserError
from ..models.mobilenet import MobileNet


def load(path: pathlib.Path, model: MobileNet) -> list[str]:
    """Load what fits from a file with a state dict of torchvision's names. A classifier of other classes is left out.

    Returns:
        Lines for the user: what was loaded, what the file lacks, what it has in addition.

    Raises:
        UserError: no such file; no state dict in it; nothing in it fits; another shape outside the classifier.
    """
    state = weights.read(path)
    own = model.state_dict()
    other = [name for name in state if name in own and state[name].shape != own[name].shape]
    wrong = [name for name in other if not name.startswith("classifier.")]
    for name in wrong:
        shapes = f"{list(state[name].shape)} there and {list(own[name].shape)} here"
        raise UserError(f"--weights {path}: of another model: {name} is {shapes}")
    fitting = {name: t for name, t in state.items() if name in own and name not in other}
    if not fitting:
        raise UserError(f"--weights {path}: of another model: none of its {len(state)} names is known here")
    with torch.no_grad():
        missing, _ = model.load_state_dict(fitting, strict=False)
    lines = [f"weights: {len(fitting)} of {len(own)} tensors from {path}"]
    if other:
        lines.append(f"weights: left out, as the file has other classes: {_some(other)}")
    random = [name for name in missing if name not in other]
    unexpected = [name for name in state if name not in own]
    if random:
        lines.append(f"weights: not in the file, and random: {_some(random)}")
    if unexpected:
        lines.append(f"weights: in the file only: {_some(unexpected)}")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
