"""The argument parser of every command."""

import argparse
from typing import Any, NoReturn

from .errors import UserError


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options, and prints its description and epilog as they are written.

    A wrong command line is a UserError, which `main` prints as one line; argparse would print its usage and exit.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)
