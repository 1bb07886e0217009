"""The doors of every backend, as a type checker compares them with the contract; nothing here is run.

A door that lacks a function, or has one of another signature, is an error of `make lint`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ulsam_fused.kernels.contract import Backend, NormBackend
    from ulsam_fused.kernels.cpu import backend as cpu
    from ulsam_fused.kernels.cpu import norm_backend as cpu_norm
    from ulsam_fused.kernels.gpu import backend as gpu
    from ulsam_fused.kernels.gpu import norm_backend as gpu_norm

    from ulsam_fused.torch_backend import backend as torch
    from ulsam_fused.torch_backend import norm_backend as torch_norm

    BACKENDS: tuple[Backend, ...] = (cpu, gpu, torch)
    NORM_BACKENDS: tuple[NormBackend, ...] = (cpu_norm, gpu_norm, torch_norm)
