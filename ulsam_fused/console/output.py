"""What a command prints, and its exit code whatever becomes of that.

A character that the output cannot show is printed as a plain one or as its escape, so no file name ends a command.
Where standard output cannot be written, one line on standard error says so.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable

from .errors import UserError, one_line

BROKEN_PIPE = 141
"""128 + SIGPIPE, as a shell reports it."""


_PLAIN = {"−": "-", "–": "-", "…": "...", "²": "2", "×": "x", "µ": "u", "·": "*", "✗": "x"}


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Python's handler of errors for what an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    text = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in characters)
    return text, error.end


codecs.register_error(_plainly.__name__, _plainly)


def exit_code(program: str, command: Callable[[], int]) -> int:
    """Run a command; its exit code. What a user or the machine has to answer for is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_plainly.__name__)
    try:
        try:
            code = command()
        except SystemExit as stop:  # --help and --version have printed and are done
            code = int(stop.code or 0)
        if sys.stdout is not None:  # None: it was closed before Python started
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, `head` for one, has gone
        code, message = BROKEN_PIPE, ""
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except UserError as error:
        code, message = 2, f"error: {error}"
    except OSError as error:
        code, message = 2, f"error: {error.filename or 'the output'}: {error.strerror or error}"
    if message:
        note(f"{program}: {message}")
    flush()
    return code


def nothing(*_: object, **_options: object) -> None:
    """In place of print, where standard output is for JSON."""


def note(line: str) -> None:
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def progress(line: str) -> None:
    """A line that the next one overwrites, "" for none; on standard error, if that is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError, ValueError):
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def flush() -> None:
    """Write what is pending to standard output; if that fails, drop it, for Python would fail with it at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard()


def discard() -> None:
    """Send standard output to nowhere from now on."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file has nothing to redirect
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Attempts:
    """Prints and writes what a long run tells about itself. Nothing that goes wrong in that ends the run."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def __call__(self, what: str, action: Callable[[], object]) -> bool:
        """Whether it went well. A failure is told on standard error, once until it goes well again."""
        try:
            action()
        except Exception as error:  # file systems, terminals and TensorBoard raise what they like
            if what not in self._failed:
                self._failed.add(what)
                reason = str(error) if isinstance(error, UserError) else f"{what}: {one_line(error)}"
                note(f"{reason}; this is left out, and the work goes on")
            return False
        self._failed.discard(what)
        return True

    def say(self, *lines: str) -> None:
        """Print the lines. Once that has failed, nothing is printed any more."""
        if not self("standard output", lambda: print("\n".join(lines), flush=True)):
            discard()
