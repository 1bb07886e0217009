"""`ulsam-fused count`: parameters and multiply-accumulates of the paper's tables, and of one's own model."""

import argparse
import json
import pathlib
from typing import Any

import torch

from ..console import count_tables, model_options
from ..console.count_tables import Compared
from ..console.errors import UserError, check_output
from ..models.counting import RULES, Count, count

_DESCRIPTION = """\
Builds every model of the paper's tables and counts it beside what the authors published. With --model, counts that
model instead, and what ULSAM saves or costs in it. Nothing is run and no weights are made: counting needs shapes only.
"""
_EPILOG = """\
examples:
  ulsam-fused count
  ulsam-fused count --modules               ULSAM beside non-local, A²-Net, SE, BAM and CBAM
  ulsam-fused count --model mobilenet_v2 --insert 17=4
  ulsam-fused count --model mobilenet_v2 --replace 14=8 --replace 17=8 --width 0.75
  ulsam-fused count --markdown              the table of README

Exit code 1 when a published figure without a known reason differs from ours.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--modules", action="store_true", help="attention modules at 512x14x14 instead")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write exact counts to this file")
    group = model_options.add_arguments(parser)
    group.add_argument("--size", type=int, metavar="PX", help="side of the input (default: 224)")


def run(args: argparse.Namespace) -> int:
    model_options.check(args, "size")
    if args.json is not None:
        check_output(args.json)
    if args.model is not None and (args.modules or args.markdown):
        raise UserError(f"--model and --{'modules' if args.modules else 'markdown'} do not go together")
    agree = True
    if args.model is not None:
        result = _own_model(args)
    elif args.modules:
        modules = count_tables.attention_modules()
        print(count_tables.modules_text(modules, args.markdown))
        result = {"modules": [{"module": m.name, "built_with": m.options, **_counts(m.cost)} for m in modules]}
    else:
        lines = count_tables.compared()
        print(count_tables.paper_markdown(lines).rstrip() if args.markdown else count_tables.paper_text(lines))
        result = {"models": [_model_row(line) for line in lines]}
        agree = all(line.agrees or line.row.note for line in lines)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    return 0 if agree else 1


def _own_model(args: argparse.Namespace) -> dict[str, Any]:
    """Print what the model costs; its row for JSON."""
    side = 224 if args.size is None else args.size
    if not 32 <= side <= 4096:
        raise UserError(f"--size must be from 32 to 4096, got {side}")
    with torch.device("meta"):
        model = model_options.build(args)
        vanilla = model_options.build(argparse.Namespace(**{**vars(args), "insert": None, "replace": None}))
    ours, plain = count(model, 3, side, side), count(vanilla, 3, side, side)
    print(f"{model_options.describe(args)}; input 3x{side}x{side}")
    print(f"{'':<16} {'this model':>14} {'without ULSAM':>14} {'difference':>14} {'in %':>8}")
    for name, here, there in zip(("weights", "all parameters", "MACs"), ours, plain, strict=True):
        print(f"{name:<16} {here:>14,} {there:>14,} {here - there:>+14,} {100 * (here / there - 1):>+8.2f}")
    print(f"{RULES}\nAll parameters: biases and norms too.")
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
