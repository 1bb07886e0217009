"""The scripts in benchmarks/, which are no package, as modules."""

import importlib
import sys
from types import ModuleType

from processes import ROOT

FOLDER = ROOT / "benchmarks"


def script(name: str) -> ModuleType:
    """Scripts import each other by name, as they do when Python runs one of them."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)
