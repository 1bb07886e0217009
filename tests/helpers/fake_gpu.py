"""A GPU that is none, for the code that takes times."""

import contextlib
from collections.abc import Iterator

import pytest
import torch


class FakeGpu:
    """Stands for the parts of torch.cuda that the timing uses; a sweep takes 3 ms. `capturing` False refuses graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
        self.replays = 0
        gpu = self

        class Stream:
            def wait_stream(self, other: object) -> None: ...

        class Graph:
            def replay(self) -> None:
                gpu.replays += 1

        class Event:
            def __init__(self, enable_timing: bool) -> None: ...
            def record(self) -> None: ...
            def synchronize(self) -> None: ...
            def elapsed_time(self, other: object) -> float:
                return 3.0

        @contextlib.contextmanager
        def graph(graph: Graph) -> Iterator[None]:
            yield
            if not capturing:
                raise RuntimeError("operation not permitted when stream is capturing")

        for name, fake in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "Event": Event,
            "graph": graph,
            "stream": contextlib.nullcontext,
            "current_stream": Stream,
            "synchronize": lambda: None,
            "memory_allocated": lambda: 5_000_000,
            "reset_peak_memory_stats": lambda: None,
            "max_memory_allocated": lambda: 7_500_000,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
