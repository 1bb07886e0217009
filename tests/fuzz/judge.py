"""Runs a `Call` and compares every value and gradient with float64.

A call of the function has the budgets of `tests.helpers.golden`. Of a layer with norms the budget is measured: eager
PyTorch runs in the call's own type on x, and on x times 1 ± epsilon, which keeps ties and signs. Its largest error, so
found, may be lucky in none of the three. Added to it are roundings of what is added up, before it cancels. NaN and
infinity must be where float64 has them. Where PyTorch raises ValueError, the layer must, too.
"""

import contextlib
import dataclasses

import torch
from torch import Tensor

from tests.fuzz.calls import Call
from tests.fuzz.function import judge_function
from tests.fuzz.layers import layer_of, run_layer, running_of
from tests.fuzz.norms import Seen, near_a_kink, run_eager, terms_of
from tests.fuzz.tensors import Given, given_of

LUCK = 32  # how many times eager's largest error may be exceeded


def judge(call: Call) -> None:
    """Raises AssertionError where the call gives something else than float64, or whatever the call itself raises."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(call.seed)
        given = given_of(call)
    if call.form == "function":
        judge_function(call, given)
    else:
        _judge_layer(call, given)


def _judge_layer(call: Call, given: Given) -> None:
    layer = layer_of(call, given)
    before = running_of(layer)
    assert (layer.problem() is not None) == call.called
    seen = {"dw_norm": Seen(), "pw_norm": Seen()}
    try:
        golden = run_eager(call, given, before, torch.float64, seen)
    except ValueError as error:  # one value for a mean
        with contextlib.suppress(ValueError):
            run_layer(call, given, layer)
            raise AssertionError(f"no error where PyTorch has one: {error}") from error
        return
    ours = run_layer(call, given, layer)
    if call.tool == "checkpoint":  # which runs the forward again, and so updates the statistics again
        ours = {name: t for name, t in ours.items() if "running" not in name}
    if call.special in ("nan", "inf", "-inf"):
        for name in () if call.called else ("A", "y - x"):  # there PyTorch's order of operations and types decide
            result = ours[name]
            if result is not None and golden[name] is not None:
                assert bool((result.isfinite() | ~golden[name].isfinite()).all()), f"{name}: not finite"
        return
    if any(norm.constant for norm in seen.values()):
        assert all(bool(ours[name].isfinite().all()) for name in ("A", "y - x"))  # gradients of float16 may overflow
        return
    dtype = _computing_type(call, given)
    terms = terms_of(call, given, golden, **seen)
    noise = dict.fromkeys(ours, 0.0)
    for step in (0, 1, -1):
        x = given.x.to(torch.promote_types(dtype, given.x.dtype)) * (1 + step * torch.finfo(dtype).eps)
        moved = dataclasses.replace(given, x=x)
        eager = run_eager(call, moved, before, dtype)
        exact = run_eager(call, moved, before, torch.float64) if dtype != torch.float64 else golden
        for name in noise:
            if eager[name] is not None:
                noise[name] = max(noise[name], float((eager[name].double() - exact[name]).norm()))
    for name, result in ours.items():
        if result is None:
            assert golden[name] is None or not golden[name].any(), name
            continue
        right = torch.zeros_like(result) if golden[name] is None else golden[name]
        assert result.shape == right.shape, name
        size = float(right.double().norm())
        stored = result.dtype if name != "dx" else given.x.dtype
        roundings = torch.finfo(stored).eps * size
        if "running" in name:  # var's are of squares
            rounding = torch.finfo(dtype).eps * terms[name]
            roundings += rounding if name.endswith("mean") else rounding * (rounding + 2 * size**0.5)
        else:
            # as in golden: of other types eager has shown roundings of its own
            roundings += torch.finfo(dtype).eps * terms[name] * (1 if dtype == torch.float64 else 0.25)
        if name == "dx":  # of 16 bits it is stored twice
            roundings += 4 * torch.finfo(stored).eps * (size + float(given.dy.double().norm()))
        if name == "y - x":
            y_type = getattr(torch, call.out_dtype or call.dtype)
            roundings += torch.finfo(y_type).eps * float(given.x.double().norm() + size)
        allowed = LUCK * noise[name] + 4 * roundings + _least(stored, result)
        error = float((result.double() - right.double()).norm())
        assert error <= allowed or near_a_kink(call, given, before), (
            f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
        )


def _computing_type(call: Call, given: Given) -> torch.dtype:
    """Of the call, or PyTorch's own where layers are called."""
    if not call.called:
        return torch.promote_types(given.x.dtype, torch.float32)
    if call.authors and call.tool == "autocast" and given.x.dtype != torch.float64:
        return torch.bfloat16  # of its convolutions
    return torch.promote_types(given.x.dtype, given.parameters["v"].dtype)


def _least(dtype: torch.dtype, t: Tensor) -> float:
    return 4 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * t.numel() ** 0.5
