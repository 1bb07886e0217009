"""A Triton driver: kernels are compiled for a GPU, and their PTX runs on tensors of the CPU.

emulator = install(90)          # before the first launch; TRITON_INTERPRET must not be set
with emulator.watch():          # what torch.empty makes inside is poisoned, and reads of it are reported
    backend.forward(...)
emulator.reports, emulator.launches
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import CompiledKernel

from .counts import Counts
from .machine import Machine, Module, Reports
from .memory import LARGEST, SEGMENT, Segment, Written, bytes_at
from .parse import parse
from .races import Report

MAX_SHARED = {80: 166912, 90: 232448, 100: 232448, 120: 101376}


class Emulator:
    """The driver of one architecture, and what it has seen."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)
        self.utils = self
        self.loading: Any = None  # the kernel that Triton loads; the driver is given its machine code alone
        self.modules: dict[str, Module] = {}
        self.written: dict[int, Written] = {}  # by the address of a storage that nothing filled
        self.reports: Reports = {}
        self.launches: list[Counts] = []
        self.races, self.counts = True, False
        self.edit: Callable[[str], str] = str  # of PTX, before it is run

    def faults(self) -> list[Report]:
        """What was reported and is not harmless."""
        return [r for r in self.reports.values() if not r.harmless]

    # --- what Triton asks of a driver -------------------------------------------------------------------------------

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # kernels are kept by device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": MAX_SHARED[self.target.arch], "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        return self.loading, self.loading, 0, 0, 1024

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        names = [(name, kind != "constexpr") for name, kind in src.signature.items()]

        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            _, compiled, _, _, _, _, *arguments = rest  # stream, kernel, metadata, hooks
            given = [(n, a) for (n, passed), a in zip(names, arguments, strict=True) if passed]
            self.launch(compiled, (x, y, z), given)

        return launch

    # --- a launch ---------------------------------------------------------------------------------------------------

    def launch(self, compiled: Any, grid: tuple[int, int, int], arguments: list[tuple[str, Any]]) -> None:
        if 0 in grid:
            return
        if compiled.hash not in self.modules:
            names = compiled.src.fn.arg_names
            self.modules[compiled.hash] = Module(
                parse(self.edit(compiled.asm["ptx"])), compiled.metadata.shared, 32 * compiled.metadata.num_warps,
                {names[place[0]]: value for place, value in compiled.src.constants.items() if len(place) == 1},
            )  # fmt: skip
        module = self.modules[compiled.hash]
        segments: dict[int, Segment] = {}
        values: list[Any] = []
        for name, a in arguments:
            if not isinstance(a, torch.Tensor):
                values.append(a)
                continue
            assert a.device.type == "cpu"
            storage = a.untyped_storage()
            base = storage.data_ptr()
            if base not in segments:
                segments[base] = Segment(name, base, storage.nbytes(), a.element_size(), self.written.get(base))
            else:
                segments[base].name += f"={name}"
                assert segments[base].itemsize == a.element_size()
            values.append(((list(segments).index(base) + 1) << SEGMENT) + a.data_ptr() - base)
        scratch = len(module.kernel.params) - len(values)  # of the compiler, which these kernels do not use
        assert 0 <= scratch <= 2, (module.kernel.params, values)
        machine = Machine(
            module, grid, values + [0] * scratch, list(segments.values()), self.reports,
            races=self.races, counts=self.counts,
        )  # fmt: skip
        self.launches.append(machine.run())

    # --- what nothing has written -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watch(self) -> Iterator["Emulator"]:
        """Fills what torch.empty and its like make with NaN, and watches for reads of it."""
        with _Watch(self.written):
            try:
                yield self
            finally:
                self.written.clear()


class _Watch(TorchDispatchMode):
    def __init__(self, written: dict[int, Written]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written = written

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        result = function(*arguments, **options)
        if "empty" in function.overloadpacket.__name__:
            storage = result.untyped_storage()
            if result.device.type == "cpu" and 0 < storage.nbytes() <= LARGEST:
                bytes_at(storage.data_ptr(), storage.nbytes())[:] = 255
                elements = np.zeros(storage.nbytes() // result.element_size(), bool)
                self.written[storage.data_ptr()] = Written(storage, elements, result.element_size())
            return result
        schema = function._schema.arguments
        named = {a.name: value for a, value in zip(schema, arguments, strict=False)} | options
        for a in schema:
            t = named.get(a.name)
            if a.alias_info is not None and a.alias_info.is_write and isinstance(t, torch.Tensor):
                given = self.written.get(t.untyped_storage().data_ptr() if t.device.type == "cpu" else 0)
                if given is not None:
                    given.elements[:] = True
        return result


def install(arch: int, *, assemble: bool = False) -> Emulator:
    """From here on, in this process. Unless `assemble`, ptxas is left out, and such kernels are kept apart."""
    emulator = Emulator(arch)
    original = CompiledKernel._init_handles

    def load(kernel: Any) -> None:
        emulator.loading = kernel
        original(kernel)

    CompiledKernel._init_handles = load
    if not assemble:
        CUDABackend.make_cubin = lambda self, src, metadata, *_: b"no machine code"
        triton.knobs.cache.dir = os.path.join(triton.knobs.cache.dir, f"ptx-only-{triton.__version__}")
    triton.runtime.driver.set_active(emulator)
    return emulator
