"""Random calls: shapes, layouts, types, values, options, tools. Whatever is allowed agrees with float64.

`make fuzz MINUTES=n` draws more of them.
"""

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import judge as judging
from tests.fuzz.calls import CALLED, QUICK_TOOLS, TINY, WITHOUT_WEIGHTS, Call, calls, saved_calls
from tests.fuzz.judge import judge
from tests.fuzz.layers import RUNNING
from tests.fuzz.tensors import device_of
from tests.helpers import backends as serving
from tests.helpers import mutants
from tests.helpers.golden import check, make_case, run_backward, run_forward
from tests.helpers.launches import slab, split
from ulsam_fused import backends, modules, upstream
from ulsam_fused.ops import flat_tensors
from ulsam_fused.ops.module_tensors import SETTINGS
from ulsam_fused.ops.subspace_layers import rows

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
        serves = backends.why_not(call.backend, torch.device(device_of(call))) is None
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
FORMS = pytest.mark.parametrize("form", ["layer", "authors"])


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


@FORMS
@pytest.mark.parametrize(
    "changes",
    [
        {"dw_training": False}, {"pw_training": False}, {"eps": 1e-3}, {"momentum": 0.8}, {"relu": True},
        {"legacy": True}, {"dw_norm": "frozen"}, {"pw_norm": "frozen"},
    ],
    ids=str,
)  # fmt: skip
def test_the_judge_notices_a_wrong_layer(form: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"form": LEGACY[form]} if "legacy" in changes else changes
    assert_noticed(dataclasses.replace(LAYER, form=form), changed, monkeypatch)


@FORMS
@pytest.mark.parametrize("norm", ["dw_norm", "pw_norm"])
@pytest.mark.parametrize("kind", CALLED)
def test_the_judge_notices_a_wrong_norm(kind: str, norm: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind that is called is taken for another."""
    other = "identity" if kind in WITHOUT_WEIGHTS[:2] else "instance" if kind == "identity" else "tracking"
    call = dataclasses.replace(LAYER, form=form, **{norm: kind})
    assert_noticed(call, {norm: "hook" if kind == other else other}, monkeypatch)


def assert_noticed(call: Call, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    judge(call)
    original = judging.layer_of
    monkeypatch.setattr(judging, "layer_of", lambda call, given: original(dataclasses.replace(call, **changes), given))
    with pytest.raises(AssertionError, match="off by"):
        judge(call)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["y - x", "A", "dx", "scale", "v", "gamma1", "gamma2", *RUNNING])
def test_the_judge_notices_an_error_of_1e_7(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other gradients vanish."""
    call = dataclasses.replace(LAYER, dw_training=training, pw_training=training)
    original = judging.run_layer

    def wrong(*arguments: Any) -> Any:
        found = original(*arguments)
        return {**found, name: found[name] * (1 + 1e-7)}

    monkeypatch.setattr(judging, "run_layer", wrong)
    with pytest.raises(AssertionError, match=name):
        judge(call)


def in_the_opposite_order(tensors: Any, g: int) -> Any:
    return [None if row[0] is None else torch.cat([t.reshape(-1) for t in row[::-1]]) for row in rows(tensors, g)]


def without_a_look(seen: Any, layer: Any, x: Any) -> Any:
    """As if nothing had changed since the layer was called."""
    x, vectors = flat_tensors.differentiable(x, seen.vectors, seen.tensors[: seen.parameters])
    return x, flat_tensors.vectors_of(vectors, *(SETTINGS(norms[0]) for norms in (seen.dw_norms, seen.pw_norms)))


def of_copies(subspaces: Any) -> Any:
    """Vectors that are not where the parts are."""
    flat = FLATTEN(subspaces)
    return flat._replace(vectors=[None if t is None else t.clone() for t in flat.vectors])


FLATTEN = flat_tensors.flatten
LEGACY = {"layer": "legacy", "authors": "authors, legacy"}
DEFECTS: dict[str, tuple[object, str, Any, str, dict[str, Any]]] = {  # where, what, the wrong one, form, the call's
    "joined in the opposite order": (flat_tensors, "joined", in_the_opposite_order, "authors", {}),
    "statistics stay": (flat_tensors, "copy_back", lambda *_: None, "authors", {}),
    "new parameters are not seen": (flat_tensors.Seen, "flat", without_a_look, "authors", {"seen": True}),
    "own parameters in functional_call": (
        upstream.ULSAM, "joins", lambda *_: None, "authors", {"tool": "functional_call", "placed": "copied"}
    ),
    "a copy's vectors": (flat_tensors, "flatten", of_copies, "authors", {"tool": "deepcopy", "placed": "copied"}),
    "hooks are not seen": (modules, "overridden", lambda _: False, "layer", {"dw_norm": "hook"}),
    "attention() writes": (
        modules, "buffers_untouched", lambda *_: contextlib.nullcontext(), "layer", {"pw_norm": "tracking"}
    ),
    "attention() writes, authors": (
        upstream, "buffers_untouched", lambda *_: contextlib.nullcontext(), "authors", {"pw_norm": "tracking"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_judge_notices_a_defect_of_layers(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, form, fields = DEFECTS[defect]
    call = dataclasses.replace(LAYER, form=form, **fields)
    judge(call)
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        judge(call)


def test_the_judge_notices_a_missing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    call = dataclasses.replace(LAYER, n=1, h=1, w=1)
    judge(call)
    monkeypatch.setattr(judging, "run_layer", lambda *_: {})
    with pytest.raises(AssertionError, match="no error where PyTorch has one"):
        judge(call)
