"""The command line: `ulsam-fused COMMAND …` or `python -m ulsam_fused COMMAND …`.

A command is a line in COMMANDS and two modules of its name: one of options/ with `add_arguments(parser)`, which does
not import PyTorch, and one of this folder with `run(args) -> int`. Only those of the command in use are imported.
"""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

from .._version import __version__
from ..console.arguments import Parser
from ..console.errors import UserError
from ..console.output import exit_code

COMMANDS = {  # name, which is also the module's: the line that `ulsam-fused --help` shows
    "info": "versions, devices, and the backend that a call takes here",
    "check": "compare the fused operator with the reference on this machine, values and gradients",
    "accuracy": "how far the fused operator and eager PyTorch are from float64, in ulp",
    "bench": "time the fused operator beside eager PyTorch, the vectorised form and torch.compile",
    "attend": "draw the attention maps of a picture",
    "build": "compile the C++ backend ahead of its first use",
    "count": "count parameters and multiply-accumulates: the paper's tables, or one model",
}

_EXAMPLES = """\
examples:
  ulsam-fused info
  ulsam-fused check
  ulsam-fused bench --case 8x512x14x14/g4 --direction forward --json out.json
  ulsam-fused attend photo.jpg --num-splits 4 -o attention.png
  ulsam-fused count --model mobilenet_v2 --insert 17=4
  eval "$(ulsam-fused --print-completion bash)"    Tab completes words and files

`ulsam-fused COMMAND --help` explains a command. Exit code: 0 done, 1 a check failed, 2 an error in the request
or an output that cannot be written.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` is sys.argv[1:] by default."""
    return exit_code("ulsam-fused", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def parser(*complete: str) -> Parser:
    """Of the whole command line. Only the commands named in `complete` have their options."""
    whole = Parser(
        prog="ulsam-fused", description="Ultra-lightweight subspace attention (ULSAM), fused.", epilog=_EXAMPLES
    )
    whole.add_argument("--version", action="version", version=f"ulsam-fused {__version__}")
    whole.add_argument(
        "--print-completion", choices=("bash", "zsh", "tcsh"), help="a script that completes words; extra [completion]"
    )
    commands = whole.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        if name in complete:
            importlib.import_module(f"{__name__}.options.{name}").add_arguments(command)
    return whole


def _run(argv: list[str]) -> int:
    chosen = next((word for word in argv if not word.startswith("-")), "")
    args = parser(chosen).parse_args(argv)
    if args.print_completion is not None:
        print(_completion(args.print_completion))
        return 0
    if args.command is None:
        parser().print_help()
        return 0
    return int(importlib.import_module(f"{__name__}.{chosen}").run(args))


def _completion(shell: str) -> str:
    """A script for this shell, made by shtab."""
    try:
        import shtab
    except ImportError as error:
        raise UserError(f"--print-completion needs shtab ({error}): pip install 'ulsam_fused[completion]'") from None
    whole = parser(*COMMANDS)
    for command in (action for action in whole._actions if isinstance(action, argparse._SubParsersAction)):
        for option in (option for name in COMMANDS for option in command.choices[name]._actions):
            if option.type is pathlib.Path:
                option.complete = shtab.FILE
    return str(shtab.complete(whole, shell))
