"""Mistakes of a user, which are printed in one line, without a traceback."""


class UserError(Exception):
    """The message says what came and what was expected; a command prints it and returns 2."""


def one_line(error: Exception) -> str:
    """Its type, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
