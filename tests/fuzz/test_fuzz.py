"""Random calls: shapes, layouts, types, values, options, tools. Whatever is allowed agrees with float64.

`make fuzz MINUTES=n` draws more of them.
"""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import judge as judging
from tests.fuzz.calls import QUICK_TOOLS, TINY, Call, calls, saved_calls
from tests.fuzz.judge import judge
from tests.helpers import backends as serving
from tests.helpers import mutants
from tests.helpers.golden import check, make_case, run_backward, run_forward
from tests.helpers.launches import slab, split
from ulsam_fused import backends

QUICK = {"tool": st.sampled_from(QUICK_TOOLS)}


@pytest.mark.slow  # 140 calls
@given(call=calls("torch", **QUICK))
@settings(max_examples=140)
def test_torch(call: Call) -> None:
    judge(call)


@pytest.mark.slow  # 150 calls
@pytest.mark.parametrize("backend", [serving.CPP])
@given(data=st.data())
@settings(max_examples=150)
def test_cpp(backend: str, data: st.DataObject) -> None:
    judge(data.draw(calls(backend, **QUICK)))


@pytest.mark.slow  # without a GPU: Triton's interpreter
@given(call=calls("triton", **QUICK, **TINY))
@settings(max_examples=10)
def test_triton(call: Call) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    judge(call)


@pytest.mark.slow  # grows with what was found
def test_what_once_failed() -> None:
    for call in saved_calls():
        serves = backends.why_not(call.backend, torch.device(judging.device_of(call))) is None
        if serves:
            judge(call)


@pytest.mark.slow  # without a GPU: Triton's interpreter
@given(data=st.data())
@settings(max_examples=10)
def test_triton_with_any_launch(data: st.DataObject, device: str) -> None:
    """Any tile and any strip give the same; so no choice of a configuration can be a wrong one."""
    launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")
    splits, relu_u, relu_z = (data.draw(strategy) for strategy in (st.integers(1, 2), st.booleans(), st.booleans()))
    shape = (
        2 // splits,
        splits * data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 8)),
        data.draw(st.integers(1, 8)),
    )
    case = make_case(shape, splits, device=device, relu_u=relu_u, relu_z=relu_z, channels_last=data.draw(st.booleans()))
    blocks = {name: data.draw(st.sampled_from([2, 4, 8, 16])) for name in ("block_c", "block_p", "block_k")}
    blocks["block_w"] = data.draw(st.sampled_from([8, 16]))
    forward = data.draw(st.sampled_from([slab(**blocks), split(7, **blocks), split(14, **blocks)]))
    backward = data.draw(st.sampled_from([slab(**blocks), split(2, **blocks), split(5, **blocks)]))
    results, z, lse = run_forward(launcher, case, config=forward)
    check(case, results)
    check(case, run_backward(launcher, case, z, lse, config=backward))


USUAL = Call(n=2, group=4, num_splits=2, h=5, w=6)
LAYER = dataclasses.replace(USUAL, form="layer", shift=True, b=True)


@pytest.mark.parametrize(
    "operator",
    [
        mutants.identity, mutants.swapped_subspaces, mutants.slightly_wrong, mutants.without_gradient(0),
        mutants.without_gradient(2), mutants.without_gradient_through_the_maximum,
    ],
)  # fmt: skip
def test_the_judge_notices_a_wrong_function(operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(USUAL)

    def wrong(*arguments: Any, backend: str, **options: Any) -> Any:
        return operator(*arguments, **options)

    monkeypatch.setattr("ulsam_fused.subspace_attention", wrong)
    with pytest.raises(AssertionError):
        judge(USUAL)


@pytest.mark.parametrize(
    "changes",
    [
        {"dw_training": False}, {"pw_training": False}, {"eps": 1e-3}, {"momentum": 0.8}, {"relu": True},
        {"form": "legacy"},
    ],
    ids=str,
)  # fmt: skip
def test_the_judge_notices_a_wrong_layer(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    judge(LAYER)
    original = judging._layer
    monkeypatch.setattr(judging, "_layer", lambda call, given: original(dataclasses.replace(call, **changes), given))
    with pytest.raises(AssertionError, match="off by"):
        judge(LAYER)
