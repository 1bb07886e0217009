"""The kernels of `ulsam_fused` and their launch configurations, imported as `ulsam_fused.kernels`.

Importing this package needs neither Triton nor a GPU. The modules that launch kernels need Triton.
"""

if __name__ == "kernels":  # found in a checkout's root by who looks for the PyPI distribution of that name
    raise ImportError("this folder is part of ulsam_fused: import it as `ulsam_fused.kernels`", name=__name__)
