"""`ulsam-fused count`: parameters and multiply-accumulates of the paper's tables, and of one's own model."""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

import torch

from ..console import count_tables, files, model_options, output
from ..console.count_tables import Compared
from ..console.errors import UserError
from ..models.counting import RULES, Count, count


def run(args: argparse.Namespace) -> int:
    model_options.check(args, "size")
    if args.json is not None:
        files.check_output(args.json)
    show = output.nothing if files.is_stdout(args.json) else print
    if args.model is not None and (args.modules or args.markdown):
        raise UserError(f"--model and --{'modules' if args.modules else 'markdown'} do not go together")
    agree = True
    if args.model is not None:
        result = _own_model(args, show)
    elif args.modules:
        modules = count_tables.attention_modules()
        show(count_tables.modules_text(modules, args.markdown))
        result = {"modules": [{"module": m.name, "built_with": m.options, **_counts(m.cost)} for m in modules]}
    else:
        lines = count_tables.compared()
        show(count_tables.paper_markdown(lines).rstrip() if args.markdown else count_tables.paper_text(lines))
        result = {"models": [_model_row(line) for line in lines]}
        agree = all(line.agrees or line.row.note for line in lines)
    if args.json is not None:
        files.write_json(args.json, result)
        show(f"written: {args.json}")
    return 0 if agree else 1


def _own_model(args: argparse.Namespace, show: Callable[[str], None]) -> dict[str, Any]:
    """Show what the model costs; its row for JSON."""
    side = 224 if args.size is None else args.size
    if not 32 <= side <= 4096:
        raise UserError(f"--size must be from 32 to 4096, got {side}")
    with torch.device("meta"):
        model = model_options.build(args)
        vanilla = model_options.build(argparse.Namespace(**{**vars(args), "insert": None, "replace": None}))
    ours, plain = count(model, 3, side, side), count(vanilla, 3, side, side)
    show(f"{model_options.describe(args)}; input 3x{side}x{side}")
    show(f"{'':<16} {'this model':>14} {'without ULSAM':>14} {'difference':>14} {'in %':>8}")
    for name, here, there in zip(("weights", "all parameters", "MACs"), ours, plain, strict=True):
        show(f"{name:<16} {here:>14,} {there:>14,} {here - there:>+14,} {100 * (here / there - 1):>+8.2f}")
    show(textwrap.fill(f"{RULES} All parameters: biases and norms too.", 80))
    return {
        "model": args.model,
        "width": 1.0 if args.width is None else args.width,
        "insert": model.insert,
        "replace": model.replace,
        "attention": args.attention or "paper",
        "size": side,
        **_counts(ours),
        "without_ulsam": _counts(plain),
    }


_COLUMNS = ("source", "backbone", "width", "dataset", "variant", "insert", "replace")


def _model_row(line: Compared) -> dict[str, Any]:
    row = line.row
    return {
        **{name: getattr(row, name) for name in _COLUMNS},
        "published_weights_M": float(row.params),
        "published_macs_M": float(row.macs),
        "weights": int(line.weights.ours.scaleb(6)),
        "macs": int(line.macs.ours.scaleb(6)),
        "weights_agree": line.weights.agrees,
        "macs_agree": line.macs.agrees,
        "note": row.note,
    }


def _counts(found: Count) -> dict[str, int]:
    return found._asdict()
