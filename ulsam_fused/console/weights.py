"""Loads weights from a file into a model, or says in one line why it cannot."""

import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.mobilenet import MobileNet
from .errors import UserError, one_line


def read(path: pathlib.Path) -> dict[str, Tensor]:
    """The state dict in a file: the file's whole content, or its entry "model".

    Raises:
        UserError: no such file; not a checkpoint, or a damaged one; anything in it but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:  # PyTorch opens no name that is not UTF-8
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # its type depends on where the file is damaged
        raise UserError(f"{path}: not a checkpoint of tensors alone, or a damaged one ({one_line(error)})") from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(f'{path}: holds no state dict: neither tensors by name, nor those under "model"')
    return {str(name): t for name, t in content.items()}


def classes(path: pathlib.Path, state: Mapping[str, Tensor]) -> int:
    """How many classes the classifier in a state dict tells apart."""
    weight = state.get("classifier.1.weight")
    if weight is None or weight.dim() != 2:
        raise UserError(f"{path}: holds no weights of a MobileNet: classifier.1.weight is not there")
    return int(weight.shape[0])


def load(path: pathlib.Path, state: Mapping[str, Tensor], model: MobileNet) -> list[int]:
    """Load a state dict of the same model, or of its backbone without ULSAM.

    Returns:
        The layers whose ULSAM is not in the file and keeps its random weights.

    Raises:
        UserError: something else is missing, is too much, or has another shape.
    """
    names = {id(module): name for name, module in model.named_modules()}
    prefixes = {number: names[id(ulsam)] + "." for number, ulsam in model.attention_layers().items()}
    expected = set(model.state_dict())
    wanted = {number: {name for name in expected if name.startswith(p)} for number, p in prefixes.items()}
    absent = [number for number, own in wanted.items() if not own & state.keys()]
    replaced = tuple(prefixes[number] for number in model.replace)
    missing = sorted(expected - state.keys() - {name for number in absent for name in wanted[number]})
    # the file may have weights of a block that a ULSAM replaces, but no more of a ULSAM than the model has
    unexpected = sorted(n for n in state.keys() - expected if not n.startswith(replaced) or ".conv." not in n)
    for names_there, verb in ((missing, "lacks"), (unexpected, "has, and this model has not,")):
        if names_there:
            more = f" and {len(names_there) - 3} more" if len(names_there) > 3 else ""
            raise UserError(f"{path}: not of this model: the file {verb} {', '.join(names_there[:3])}{more}")
    try:
        model.load_state_dict({name: t for name, t in state.items() if name in expected}, strict=False)
    except RuntimeError as error:
        reason = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise UserError(f"{path}: not of this model: {reason}") from None
    return absent
