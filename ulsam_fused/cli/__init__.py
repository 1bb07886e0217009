"""The command line: `ulsam-fused COMMAND …` or `python -m ulsam_fused COMMAND …`.

A command is a module of this folder with `add_arguments(parser)` and `run(args) -> int`, and a line in COMMANDS. Only
the module of the command in use is imported.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ..console.arguments import Parser
from ..console.errors import UserError

COMMANDS = {  # name, which is also the module's: the line that `ulsam-fused --help` shows
    "info": "versions, devices, and the backend that a call takes here",
    "check": "compare the fused operator with the reference on this machine, values and gradients",
    "bench": "time the fused operator beside eager PyTorch, the vectorised form and torch.compile",
    "attend": "draw the attention maps of a picture",
    "build": "compile the C++ backend ahead of its first use",
    "count": "count parameters and multiply-accumulates: the paper's tables, or one model",
}

_EXAMPLES = """\
examples:
  ulsam-fused info
  ulsam-fused check --quick
  ulsam-fused bench --case 8x512x14x14/g4 --direction forward+backward --json out.json
  ulsam-fused attend photo.jpg --num-splits 4 -o attention.png
  ulsam-fused count --model mobilenet_v2 --insert 17=4

`ulsam-fused COMMAND --help` explains a command. Exit code: 0 done, 1 a check failed, 2 an error in the request.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` is sys.argv[1:] by default."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console or file that does not know a letter gets "?" in its place
            stream.reconfigure(errors="replace")
    try:
        return _run(argv)
    except UserError as error:
        print(f"ulsam-fused: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ulsam-fused: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str]) -> int:
    chosen = next((word for word in argv if not word.startswith("-")), None)
    module = importlib.import_module(f"{__name__}.{chosen}") if chosen in COMMANDS else None
    parser = Parser(
        prog="ulsam-fused", description="Ultra-lightweight subspace attention (ULSAM), fused.", epilog=_EXAMPLES
    )
    parser.add_argument("--version", action="version", version=f"ulsam-fused {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        if module is not None and name == chosen:
            module.add_arguments(command)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help and --version have printed and are done
        return int(stop.code or 0)
    if module is None:
        parser.print_help()
        return 0
    return int(module.run(args))
