"""In a checkout the folder `kernels` stands beside this package. Here it becomes importable as `ulsam_fused.kernels`.

A wheel and an editable installation have it inside, so nothing is done there. No other folder of the checkout can be
imported through the package.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
from collections.abc import Sequence

_NAME = f"{__package__}.kernels"
_HERE = pathlib.Path(__file__).parent
_BESIDE = _HERE.resolve().parent / "kernels" / "__init__.py"


class _Finder(importlib.abc.MetaPathFinder):
    """Knows one name. Python asks it again at every import and reload of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(_NAME, _BESIDE) if fullname == _NAME else None


if not (_HERE / "kernels").is_dir() and _BESIDE.is_file():
    sys.meta_path.insert(0, _Finder())  # before the finder of an installation, which may belong to another checkout
