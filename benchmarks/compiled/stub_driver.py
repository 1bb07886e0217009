"""A driver for Triton with a target and no device: kernels are compiled for it; loading and launching is stubbed."""

from collections.abc import Callable
from typing import Any

import triton

from benchmarks.compiled.resources import _Driver


class _Utilities:
    """What Triton asks of a driver when it loads a compiled kernel."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return object(), hash(binary), 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass


def activate(launcher_of: Callable[[Any, Any], Callable[..., object]], arch: int = 90) -> None:
    """From here on launches end in what `launcher_of` makes of a kernel's source and metadata."""
    driver: Any = _Driver(arch)
    driver.utils, driver.launcher_cls = _Utilities(), launcher_of
    triton.runtime.driver.set_active(driver)
