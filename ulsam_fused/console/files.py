"""Files that a command writes: whole, or as they were before."""

import contextlib
import errno
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import IO

from .errors import UserError

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Names of standard output."""


def is_stdout(path: pathlib.Path | None) -> bool:
    """Whether this is standard output, which then gets nothing else."""
    return str(path) in STDOUT


def check_output(path: pathlib.Path) -> None:
    """Raises UserError where a file cannot be written, before the work that it is for."""
    if is_stdout(path):
        if sys.stdout is None:
            raise UserError(f"{path}: standard output is closed")
        return
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    if not all(os.access(place, os.W_OK) for place in (folder, path) if place.exists() and not is_special(path)):
        raise UserError(f"{path}: no permission to write")


def write_json(path: pathlib.Path, content: object) -> None:
    """To standard output where the path names it, else to a file as `replace` does it."""
    text = json.dumps(content, indent=1) + "\n"
    if is_stdout(path):
        print(text, end="", flush=True)
    else:
        write_text(path, text)


def part(path: pathlib.Path) -> pathlib.Path:
    """Where a command keeps what it has so far of this file."""
    return path.with_name(f"{path.name}.part")


def write_text(path: pathlib.Path, text: str) -> None:
    """As UTF-8, as `replace` does it; a part of a file's name that is no text is written as its escape."""
    replace(path, lambda file: file.write(text.encode("utf-8", errors="backslashreplace")))


def replace(path: pathlib.Path, write: Callable[[IO[bytes]], object], keep: pathlib.Path | None = None) -> None:
    """Let `write` fill a new file beside `path`, wait until the disk has it, and give it this name.

    The file that had the name is renamed to `keep`. Nobody finds half a file under its name, and nothing is left over
    where that fails. What is no regular file, such as /dev/null or a pipe, is written to directly.

    Raises:
        UserError: it cannot be written; the message says why.
    """
    try:
        if is_special(path):
            with path.open("wb") as file:
                write(file)
            return
        target = path.resolve()  # a link stays a link
        new = target.with_name(f".{target.name}.new")
        try:
            with new.open("wb") as file:
                write(file)
                file.flush()
                sync(file.fileno())
            if keep is not None and target.exists():
                os.replace(target, keep)
            os.replace(new, target)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    sync_folder(target.parent)


def is_special(path: pathlib.Path) -> bool:
    """Whether this is standard output, a device or a pipe, which is written to as it is."""
    return is_stdout(path) or path.parts[:2] in (("/", "dev"), ("/", "proc")) or (path.exists() and not path.is_file())


def sync(number: int) -> None:
    """Wait until the disk has a file, where its file system can tell."""
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def sync_folder(folder: pathlib.Path) -> None:
    """Wait until the disk has the names in a folder. Windows and some network file systems refuse; the names stand."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
