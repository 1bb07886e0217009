"""Names that users choose from. Nothing is imported, so `ulsam-fused --help` need not wait for PyTorch."""

BACKENDS = ("auto", "triton", "cpp", "torch", "reference")
FUSED = ("triton", "cpp", "torch")  # compared with the reference
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("nchw", "channels_last")
ATTENTION = ("paper", "upstream")
MODELS = ("mobilenet_v1", "mobilenet_v2")
READERS = ("pillow", "torchvision")
