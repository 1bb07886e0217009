"""ULSAM, ultra-lightweight subspace attention for compact CNNs (WACV 2020), fused.

    import ulsam_fused as uf
    layer = uf.ULSAM(512, num_splits=4)
    y = layer(x)                            # x [N, 512, H, W]

Triton kernels on GPUs, vectorised PyTorch elsewhere; `uf.explain(x, num_splits)` says which and why.
"""

import pathlib as _pathlib

_here = _pathlib.Path(__file__).resolve().parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_here.parent))  # a plain checkout: ulsam_fused.kernels is the folder beside this one

from . import models, reference, upstream  # noqa: E402
from ._version import __version__  # noqa: E402
from .backends import get_backend, set_backend  # noqa: E402
from .conversion import fuse, unfuse  # noqa: E402
from .distributed import sync_batchnorm  # noqa: E402
from .explanation import explain  # noqa: E402
from .functional import subspace_attention  # noqa: E402
from .modules import ULSAM  # noqa: E402

__all__ = [
    "ULSAM",
    "__version__",
    "explain",
    "fuse",
    "get_backend",
    "models",
    "reference",
    "set_backend",
    "subspace_attention",
    "sync_batchnorm",
    "unfuse",
    "upstream",
]
