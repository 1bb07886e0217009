"""A Triton driver for a machine without a GPU. Kernels are compiled for its target; nothing is loaded or launched."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget


class Compiled(NamedTuple):
    """A kernel that a launch compiled."""

    kernel: Any  # triton.compiler.CompiledKernel
    constants: dict[str, Any]  # the launch's keyword arguments


class Driver:
    """Has a target and no device."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # Triton keeps kernels by device number: each architecture needs its own

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


class _Utilities:
    """What Triton asks of a driver when it loads a compiled kernel."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return object(), hash(binary), 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass


def activate(launcher_of: Callable[[Any, Any], Callable[..., object]], arch: int = 90) -> None:
    """From now on a launch calls what `launcher_of` makes of the kernel's source and metadata."""
    driver: Any = Driver(arch)
    driver.utils, driver.launcher_cls = _Utilities(), launcher_of
    triton.runtime.driver.set_active(driver)


@contextlib.contextmanager
def compile_only(arch: int) -> Iterator[list[Compiled]]:
    """Launches inside compile for this architecture and run nothing; their kernels come into the yielded list."""
    triton.runtime.driver.set_active(Driver(arch))
    compiled: list[Compiled] = []
    original = triton.JITFunction.run

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        compiled.append(Compiled(original(kernel, *args, grid=grid, warmup=True, **constants), constants))

    triton.JITFunction.run = run
    try:
        yield compiled
    finally:
        triton.JITFunction.run = original
