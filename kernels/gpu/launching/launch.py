"""A kernel launch that lacks nothing but its tensors. From the second call on it skips Triton's binding of arguments.

`JITFunction.run` looks at every argument in every call to find the compiled kernel that it found before. For the 30 to
45 arguments of our kernels that takes 10 to 25 microseconds on a CPU. All that its choice depends on is known here:
numbers and constants, which belong to the launch, and of every tensor whether it is there, its type, and whether its
address is a multiple of 16. So the compiled kernel is kept for tensors alike in that, and called as `JITFunction.run`
calls it.
"""

import os
import subprocess
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel

from .config import LaunchConfig, MomentsConfig

TRIED = ((3, 6), (3, 7), (3, 8), (3, 9))
"""Releases of Triton for which `make compile-matrix` has compared what arrives at the driver."""

keep = torch.version.hip is None and tuple(map(int, triton.__version__.split(".")[:2])) in TRIED
"""Whether compiled kernels are kept and used. For AMD's GPUs Triton's choice also depends on the sizes of tensors."""


class Launch:
    """A kernel, its grid, and all its arguments that are neither tensors nor floats.

    The kernel's parameters stand in this order: tensors, floats, the numbers given here, constants.
    """

    __slots__ = ("_arguments", "_kept", "constants", "grid", "kernel", "numbers")

    def __init__(self, kernel: Any, grid: tuple[int, int], numbers: tuple[int, ...], constants: dict[str, Any]) -> None:
        self.kernel, self.grid, self.numbers, self.constants = kernel, (*grid, 1), numbers, constants
        # what comes after tensors and floats; the compiler's options, such as num_warps, are no arguments of a kernel
        names = [name for name in kernel.arg_names if name in constants]
        self._arguments = (*numbers, *(constants[name] for name in names))
        self._kept: dict[tuple[Any, ...], Any] = {}

    def __call__(self, tensors: tuple[Tensor | None, ...], floats: tuple[float, ...] = ()) -> None:
        """On the current stream of the current device, which is the tensors'; always the same for one launch."""
        key = tuple([
            None if t is None else t.dtype if (address := t.data_ptr()) and not address & 15 else _unaligned(t)
            for t in tensors
        ])  # fmt: skip
        if not keep or _watched():
            self._bound(tensors, floats)
            return
        run = self._kept.get(key)
        if run is not None:
            run(*tensors, *floats, *self._arguments)
            return
        compiled = self._bound(tensors, floats)
        complete = len(tensors) + len(floats) + len(self._arguments) == len(self.kernel.arg_names)
        if complete and type(compiled) is CompiledKernel:
            self._kept[key] = compiled[self.grid]

    def _bound(self, tensors: tuple[Tensor | None, ...], floats: tuple[float, ...]) -> Any:
        try:
            return self.kernel[self.grid](*tensors, *floats, *self.numbers, **self.constants)
        except (RuntimeError, FileNotFoundError, subprocess.CalledProcessError) as error:
            if _lacks_compiler(error):
                raise RuntimeError(
                    "Triton compiles a few lines of C before it starts a kernel, and cannot do so here: install a C "
                    "compiler and Python's headers (Debian and Ubuntu: apt install gcc python3-dev), name a compiler "
                    f'in CC, or choose the backend "torch" ({error})'
                ) from error
            raise


def _lacks_compiler(error: Exception) -> bool:
    """Whether Triton found no C compiler, or one that fails, as it does without Python's headers."""
    if isinstance(error, FileNotFoundError):
        return error.filename is not None and error.filename == os.environ.get("CC")
    return isinstance(error, subprocess.CalledProcessError) or "C compiler" in str(error)


def compiler_options(config: LaunchConfig | MomentsConfig) -> dict[str, int]:
    """What a configuration asks of the compiler. It counts in warps of 32 lanes; most of AMD's have 64."""
    if torch.version.hip is None:
        return {"num_warps": config.num_warps, "maxnreg": config.max_registers}
    lanes = 32 if knobs.runtime.interpret else triton.runtime.driver.active.get_current_target().warp_size
    return {"num_warps": max(32 * config.num_warps // lanes, 1)}  # AMD's compiler knows no limit of registers


def _unaligned(t: Tensor) -> Any:
    """The key of a tensor whose address is no multiple of 16, or 0; meta tensors are launched to compile only."""
    if t.data_ptr():
        return (t.dtype,)
    if t.numel() and not t.is_meta:
        raise RuntimeError(f"a tensor of shape {list(t.shape)} has no memory; was its storage freed?")
    return t.dtype


def _watched() -> bool:
    """Whether somebody debugs or instruments kernels, for which Triton compiles others."""
    runtime = knobs.runtime
    return bool(
        runtime.debug or runtime.add_stages_inspection_hook is not None or knobs.compilation.instrumentation_mode
    )
