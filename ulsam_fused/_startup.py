"""Whether this process is one of the package's commands, which answers `--help` before PyTorch could be imported.

Python runs `ulsam_fused/__init__.py` before any command. There the public names are left out for a command, whose
modules import each other directly.
"""

import pathlib
import sys

SCRIPT = "ulsam-fused"
_OWN = ("ulsam_fused", "ulsam_fused.cli", "ulsam_fused.train")


def is_command() -> bool:
    """Of the script `ulsam-fused`, and of `python -m ulsam_fused` and `python -m ulsam_fused.train`."""
    if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module to run
        return any(word.removeprefix("-m") in _OWN for word in sys.orig_argv)
    return bool(sys.argv) and pathlib.PurePath(sys.argv[0]).stem == SCRIPT
