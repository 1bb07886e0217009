"""The operator in C++ for CPUs, compiled on first use: `backend` and `norm_backend` are its two doors."""
