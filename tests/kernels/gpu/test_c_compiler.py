"""Triton compiles C before it starts a kernel on a GPU: a machine that cannot do so is told what it lacks."""

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.runtime import build  # noqa: E402
from ulsam_fused.kernels.gpu.launching.launch import Launch  # noqa: E402


class Kernel:
    """One that Triton has to build something for."""

    arg_names = ("x",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *_, **__: build._build("part", str(self.folder / "part.c"), str(self.folder), [], [], [], [])


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (None, "Failed to find C compiler"),
        ("/no/such/compiler", "No such file or directory: '/no/such/compiler'"),
        ("/bin/false", "non-zero exit status 1"),
    ],
)
def test_without_a_c_compiler_the_remedy_is_named(
    compiler: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = getattr(build, "_find_compiler", None)
    if hasattr(finder, "__wrapped__"):  # Triton 3.8 and newer look for a compiler once in a process
        monkeypatch.setattr(build, "_find_compiler", finder.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path))
    if compiler is None:
        monkeypatch.delenv("CC", raising=False)
    else:
        monkeypatch.setenv("CC", compiler)
    with pytest.raises(RuntimeError, match=rf"install a C compiler and Python's headers.*{reason}"):
        Launch(Kernel(tmp_path), (1, 1), (), {})(())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), FileNotFoundError(2, "no", "/x"), ValueError("no")])
def test_other_errors_of_a_launch_stay_as_they_are(error: Exception) -> None:
    class Failing:
        arg_names = ()

        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            def fail(*_: object, **__: object) -> None:
                raise error

            return fail

    with pytest.raises(type(error)) as raised:
        Launch(Failing(), (1, 1), (), {})(())
    assert raised.value is error
