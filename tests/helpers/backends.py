"""The backends that tests run over, by name. The C++ one is skipped, with the reason, where it cannot serve."""

import pytest
import torch
from ulsam_fused.kernels.cpu import build

_PROBLEM = "tensors are on a GPU here" if torch.cuda.is_available() else build.problem()
CPP = pytest.param("cpp", marks=pytest.mark.skipif(_PROBLEM is not None, reason=str(_PROBLEM)))
FUSED = ("torch", "triton", CPP)
ALL = ("reference", *FUSED)
