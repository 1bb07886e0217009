"""In a checkout the folder `kernels` stands beside this package; here it becomes `ulsam_fused.kernels`.

A wheel has it inside, and then nothing is done. Nothing else of the checkout can be imported through the package.
"""

import importlib.util
import pathlib
import sys

_NAME = f"{__package__}.kernels"
_HERE = pathlib.Path(__file__).resolve().parent
_BESIDE = _HERE.parent / "kernels"

if not (_HERE / "kernels").is_dir() and (_BESIDE / "__init__.py").is_file() and _NAME not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        _NAME, _BESIDE / "__init__.py", submodule_search_locations=[str(_BESIDE)]
    )
    assert _spec is not None
    assert _spec.loader is not None
    _kernels = importlib.util.module_from_spec(_spec)
    sys.modules[_NAME] = _kernels
    _spec.loader.exec_module(_kernels)
    sys.modules[__package__].kernels = _kernels  # type: ignore[attr-defined]
