"""The backends that tests run over, by name. The C++ one is skipped, with the reason, where it cannot serve."""

import pytest
import torch
from ulsam_fused.kernels.cpu import build

_PROBLEM = "tensors are on a GPU here" if torch.cuda.is_available() else build.problem()
CPP = pytest.param("cpp", marks=pytest.mark.skipif(_PROBLEM is not None, reason=str(_PROBLEM)))
# without a GPU Triton's interpreter runs the kernels
TRITON = pytest.param("triton", marks=() if torch.cuda.is_available() else pytest.mark.slow)
FUSED = ("torch", TRITON, CPP)
ALL = ("reference", *FUSED)
