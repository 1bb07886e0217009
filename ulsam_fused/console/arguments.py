"""The argument parser of every command."""

import argparse
from typing import NoReturn

from .errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError for a wrong command line, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)
