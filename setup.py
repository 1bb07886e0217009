"""README as a package index shows it: its links lead to the repository, because nothing lies beside it there.

All else about the distribution stands in pyproject.toml, the repository's address included.
"""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def absolute(readme: str, address: str | None) -> str:
    """README with absolute links. Without an address a link becomes its text, and a picture goes."""

    def followed(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if address is None:
            return "" if picture else text
        return f"{picture}[{text}]({address}/{'raw' if picture else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)\s]+)\)", followed, readme)


def address(pyproject: str) -> str | None:
    """`Source` of [project.urls]; None while that block is a comment. Python 3.10 cannot read TOML."""
    found = re.search(r'^Source = "(.*)"$', pyproject, re.MULTILINE)
    return None if found is None else found[1]


if __name__ == "__main__":
    source = address((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    setup(
        long_description=absolute((HERE / "README.md").read_text(encoding="utf-8"), source),
        long_description_content_type="text/markdown",
    )
