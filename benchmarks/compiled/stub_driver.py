"""A Triton driver for a machine without a GPU. Nothing is loaded or launched.

Either kernels are compiled for its target (`compile_only`), or Triton only decides from the arguments which kernel a
launch needs (`activate`).
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource


class Compiled(NamedTuple):
    """A kernel that a launch compiled."""

    kernel: Any  # triton.compiler.CompiledKernel
    constants: dict[str, Any]  # the launch's keyword arguments


class Driver:
    """Has a target and no device."""

    def __init__(self, arch: int | str) -> None:  # 90 for sm_90, or "gfx942"
        self.target = GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton keeps kernels by device number: each architecture needs its own
        return int(str(self.target.arch).removeprefix("gfx"), 16)

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
    """From now on a launch calls what `launcher_of` makes of the kernel's source and metadata; kernels are empty."""
    driver: Any = Driver(arch)
    driver.utils, driver.launcher_cls = _Utilities(), launcher_of
    # an empty kernel must not be found in place of a compiled one, so this process has its own folder for them
    driver.folder = tempfile.TemporaryDirectory()
    knobs.cache.dir = driver.folder.name
    ASTSource.make_ir = lambda source, *_: source.name
    CUDABackend.add_stages = _no_stages
    triton.runtime.driver.set_active(driver)


def _no_stages(backend: CUDABackend, stages: dict[str, Callable[[str, dict[str, Any]], object]], *_: Any) -> None:
    """In place of the compiler's stages: only the metadata that a launch reads."""

    def name(kernel: str, metadata: dict[str, Any]) -> str:
        metadata.update(name=kernel, shared=0)
        return kernel

    stages["ttir"] = name
    stages["cubin"] = lambda kernel, metadata: b""


def phases(constants: dict[str, Any]) -> list[str]:
    """The phases that a launch runs; none where its kernel has no phases."""
    return [name.lower() for name in ("LOGITS", "APPLY", "REDUCE", "MARCH") if constants.get(name)]


@contextlib.contextmanager
def compile_only(
    arch: int | str, *, until: str | None = None, of: frozenset[str] | None = None
) -> Iterator[list[Compiled]]:
    """Launches inside compile for this architecture and run nothing; their kernels come into the yielded list.

    With `until`, compiling ends with this stage: "ptx", or "ttir", which is all that Triton itself can refuse. With
    `of`, only launches of these phases compile. A process compiles for one kind of GPU: plans are kept.
    """
    triton.runtime.driver.set_active(Driver(arch))
    compiled: list[Compiled] = []
    original, hip = triton.JITFunction.run, torch.version.hip
    torch.version.hip = None if isinstance(arch, int) else "none"  # as where PyTorch is built for AMD

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        if of is None or of.intersection(phases(constants)):
            compiled.append(Compiled(original(kernel, *args, grid=grid, warmup=True, **constants), constants))

    triton.JITFunction.run = run
    knobs.runtime.add_stages_inspection_hook = None if until is None else functools.partial(_ends_with, until)
    try:
        yield compiled
    finally:
        triton.JITFunction.run, torch.version.hip = original, hip
        knobs.runtime.add_stages_inspection_hook = None


def _ends_with(stage: str, *of_the_compiler: Any) -> tuple[str, str]:
    """Triton's hook into its stages. Without arguments it says by which key such kernels are kept."""

    def nothing(source: object, metadata: dict[str, Any]) -> bytes:
        metadata.setdefault("name", stage)
        metadata.setdefault("shared", 0)
        return b""

    if of_the_compiler:
        _, stages, *_ = of_the_compiler
        names = list(stages)
        stages.update(dict.fromkeys(names[names.index(stage) + 1 :], nothing))
    return f"until {stage}", f"until {stage}"
