"""Most tests of the Triton kernels are slow. The quick ones, named here, see each direction, type and regime."""

import os
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parent
QUICK = {
    "test_forward.py": ("test_float32_parameters_beside_16_bits", "test_chosen_configuration"),
    "test_backward.py": ("test_types", "test_chosen_configuration"),
    "test_norm_forward.py": ("test_float32_parameters_beside_16_bits", "test_chosen_configuration"),
    "test_norm_backward.py": ("test_strided_parameters_and_attention_gradient", "test_chosen_configuration"),
    "test_memory.py": ("test_launches", "test_the_guards_see_a_stray_write_and_an_unwritten_element"),
}
INTERPRETED = (*QUICK, "test_wide.py")

# The interpreter runs one program after the other, and two runs always agree. A GPU runs these, and `make ptx`, where a
# race is reported. `tests/ptx/test_ptx.py` runs the tests of the sums' blocks: there, they are quick.
NOT_INTERPRETED = ("test_two_runs_agree_bit_by_bit", "test_images_and_chunks_around_the_blocks_of_the_sums")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        left_out = [item for item in items if item.path.parent == FOLDER and item.name.startswith(NOT_INTERPRETED)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        name = item.path.name
        if item.path.parent == FOLDER and name in INTERPRETED and not item.name.startswith(QUICK.get(name, ())):
            item.add_marker(pytest.mark.slow)  # the interpreter needs up to half a second for a case
