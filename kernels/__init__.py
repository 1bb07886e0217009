"""The Triton kernels and their launch configurations, imported as `ulsam_fused.kernels`.

Importing this package needs neither Triton nor a GPU; its modules `primitives`, `forward`, `backward` and `launcher`
need Triton.
"""
