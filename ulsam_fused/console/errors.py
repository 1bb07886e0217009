"""Mistakes of a user, which are printed in one line, without a traceback."""

import os
import pathlib


class UserError(Exception):
    """The message says what came and what was expected; `main` prints it and returns 2."""


def one_line(error: Exception) -> str:
    """Its type, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def check_output(path: pathlib.Path) -> None:
    """Raises UserError where a file cannot be written, before the work that it is for."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"{path}: no permission to write")
