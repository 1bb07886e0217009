"""Random shapes, layouts, types and options: whatever is allowed agrees with the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.golden import Case, check, make_case, run_backward, run_forward, run_public
from tests.helpers.launches import slab, split
from tests.helpers.layouts import STRIDED, channels_last

LAYOUTS = st.sampled_from([None, channels_last, *STRIDED])


@st.composite
def cases(draw: st.DrawFn, device: str, *, slabs: int, group: int, side: int, one_activation: bool) -> Case:
    """Images times subspaces up to `slabs`, up to `group` channels each, maps of up to `side` by `side` pixels."""
    splits = draw(st.integers(1, slabs))
    shape = (
        draw(st.integers(1, slabs // splits)),
        splits * draw(st.integers(1, group)),
        draw(st.integers(1, side)),
        draw(st.integers(1, side)),
    )
    relu = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**16)))
    case = make_case(
        shape,
        splits,
        draw(st.sampled_from([torch.float64, torch.float32])),
        device,
        shift=draw(st.booleans()),
        b=draw(st.booleans()),
        relu_u=relu,
        relu_z=relu if one_activation else draw(st.booleans()),
        gain=draw(st.sampled_from([0.5, 2.0, 10.0])),
        d_attention=draw(st.booleans()),
    )
    if draw(st.booleans()):  # ties
        case.x = torch.randint_like(case.x, -2, 3)
    layout_x, layout_dy = draw(LAYOUTS), draw(LAYOUTS)
    case.x = layout_x(case.x) if layout_x else case.x
    case.dy = layout_dy(case.dy) if layout_dy else case.dy
    if case.d_attention is not None and draw(st.booleans()):
        case.dy = None
    return case


@given(data=st.data())
@settings(max_examples=60)
def test_torch(data: st.DataObject, device: str) -> None:
    check(case := data.draw(cases(device, slabs=6, group=5, side=9, one_activation=True)), run_public(case, "torch"))


@pytest.mark.slow  # without a GPU: Triton's interpreter
@given(data=st.data())
@settings(max_examples=6)
def test_triton(data: st.DataObject, device: str) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    case = data.draw(cases(device, slabs=2, group=4, side=6, one_activation=True))
    check(case, run_public(case, "triton"))


@pytest.mark.slow  # without a GPU: Triton's interpreter
@given(data=st.data())
@settings(max_examples=10)
def test_triton_with_any_launch(data: st.DataObject, device: str) -> None:
    """Any tile and any strip give the same; so no choice of a configuration can be a wrong one."""
    launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")
    case = data.draw(cases(device, slabs=2, group=3, side=8, one_activation=False))
    block = st.sampled_from([2, 4, 8, 16])
    blocks = {name: data.draw(block) for name in ("block_c", "block_p", "block_k")}
    blocks["block_w"] = data.draw(st.sampled_from([8, 16]))
    forward = data.draw(st.sampled_from([slab(**blocks), split(7, **blocks), split(14, **blocks)]))
    backward = data.draw(st.sampled_from([slab(**blocks), split(2, **blocks), split(5, **blocks)]))
    results, z, lse = run_forward(launcher, case, config=forward)
    check(case, results)
    check(case, run_backward(launcher, case, z, lse, config=backward))
