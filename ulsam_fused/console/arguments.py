"""The parser of every command: a wrong option is a `UserError`, which `main` prints as one line."""

import argparse
from typing import Any, NoReturn

from .errors import UserError


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options, and prints its description and epilog as they are written."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(message)
