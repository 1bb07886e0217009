"""ULSAM, ultra-lightweight subspace attention for compact CNNs (WACV 2020), fused.

    import ulsam_fused as uf
    layer = uf.ULSAM(512, num_splits=4)
    y = layer(x)                            # x [N, 512, H, W]

Triton kernels on GPUs, vectorised PyTorch elsewhere; `uf.explain(x, num_splits)` says which and why.
"""

from typing import TYPE_CHECKING

from . import _checkout  # noqa: F401  in a checkout: where ulsam_fused.kernels is
from ._startup import is_command
from ._version import __version__

if TYPE_CHECKING or not is_command():
    from . import models, reference, upstream
    from .backends import get_backend, set_backend
    from .conversion.fuse import fuse, unfuse
    from .distributed import sync_batchnorm
    from .explanation import explain
    from .functional import subspace_attention
    from .modules import ULSAM
    from .ops.decompositions import decompositions

__all__ = [
    "ULSAM",
    "__version__",
    "decompositions",
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
