"""`--model` and its options: a MobileNet with ULSAM, as a command line asks for it."""

import argparse
import re
from typing import Any

from .. import models
from .._names import MODELS
from ..models.mobilenet import MobileNet
from .errors import UserError

_OPTIONS = ("insert", "replace", "width", "attention")


def check(args: argparse.Namespace, *more: str) -> None:
    """Raises UserError where an option for a model, one of `more` too, is given without --model."""
    for name in (*_OPTIONS, *more):
        if args.model is None and getattr(args, name) is not None:
            raise UserError(f"--{name} needs --model, one of {', '.join(MODELS)}")


def build(args: argparse.Namespace, **options: Any) -> MobileNet:
    """The model that was asked for, with random weights; options: of its builder.

    Raises:
        UserError: layers, numbers of subspaces or a width that it cannot have.
    """
    builder = getattr(models, args.model)
    try:
        model: MobileNet = builder(
            1.0 if args.width is None else args.width,
            insert=places("insert", args.insert),
            replace=places("replace", args.replace),
            attention=args.attention or "paper",
            **options,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"--model {args.model}: {error}") from None
    return model


def places(option: str, words: list[str] | None) -> dict[int, int]:
    """{17: 4} of the word 17=4; commas may join several."""
    found: dict[int, int] = {}
    for word in ",".join(words or ()).split(",") if words else ():
        match = re.fullmatch(r"([0-9]+)=([0-9]+)", word.strip())
        if match is None:
            raise UserError(f"--{option} must look like 17=4 (layer = subspaces), got {word!r}")
        if int(match[1]) in found:
            raise UserError(f"--{option} names layer {match[1]} twice")
        found[int(match[1])] = int(match[2])
    return found


def describe(args: argparse.Namespace) -> str:
    """The model in words, for the head of a report."""
    parts = [args.model, f"width {1.0 if args.width is None else args.width:g}"]
    for option, verb in (("insert", "after"), ("replace", "in place of")):
        chosen = [f"{layer} (g={g})" for layer, g in sorted(places(option, getattr(args, option)).items())]
        if chosen:
            parts.append(f"ULSAM {verb} layer{'s' if len(chosen) > 1 else ''} {', '.join(chosen)}")
    if args.attention == "upstream":
        parts.append("the authors' form")
    return ", ".join(parts)
