"""Starts the tests in `emulated/`. `tests/kernels/gpu/test_compile.py` starts `emulated/shipped.py`."""

import pathlib

import pytest

from tests.ptx.run import emulated

pytest.importorskip("triton")

# views, what is not a number, ties, odd strides, at tiles so small that small tensors have several
SMALL = (
    "test_forward.py::test_strided_x[every_other_channel]",
    "test_forward.py::test_strided_x[transposed]",
    "test_forward.py::test_strided_x[same_image]",
    "test_forward.py::test_nan_and_infinity_in_16_bits[dtype0]",
    "test_backward.py::test_ties[dtype1-split-nchw]",
    "test_backward.py::test_ties[dtype1-slab-channels_last]",
    "test_backward.py::test_strides_of_dy[channels_last-cropped]",
    "test_backward.py::test_nan_is_not_lost[shape1-True]",
    "test_norm_forward.py::test_strided_x[transposed]",
    "test_norm_forward.py::test_nan_stays_in_its_subspace",
    "test_norm_backward.py::test_ties[dtype1-split-both]",
    "test_norm_backward.py::test_images_and_chunks_around_the_blocks_of_the_sums[(9, 1, 6, 9)]",
    "test_norm_backward.py::test_images_and_chunks_around_the_blocks_of_the_sums[(1, 1, 66, 1)]",
)


@pytest.mark.slow  # compiles 17 small kernels
def test_faults_are_found(tmp_path: pathlib.Path) -> None:
    assert "22 passed" in emulated("tests/ptx/emulated/faults.py", cache=tmp_path)


@pytest.mark.slow  # compiles about 25 small kernels
def test_small_cases(tmp_path: pathlib.Path) -> None:
    files = (f"tests/kernels/gpu/{name}" for name in SMALL)
    printed = emulated("tests/ptx/emulated/small.py", *files, cache=tmp_path)
    assert f"{len(SMALL) + 2} passed" in printed
