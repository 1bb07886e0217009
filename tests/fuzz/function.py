"""Judges a call of the function, with the budgets of `tests.helpers.golden`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import ulsam_fused as uf
from tests.fuzz.calls import Call
from tests.fuzz.tensors import NO_GRADIENTS, Given, called, device_of, gradients_of, leaves_of
from tests.helpers.golden import Case, Results, check, logits, run_reference
from ulsam_fused import reference


def judge_function(call: Call, given: Given) -> None:
    leaves = leaves_of(call, given)
    out_dtype = None if call.out_dtype is None else getattr(torch, call.out_dtype)

    def function(x: Tensor, scale: Tensor, v: Tensor, shift: Tensor | None, b: Tensor | None) -> Any:
        return uf.subspace_attention(
            x, scale, v, call.num_splits, shift, b, activation="relu" if call.relu else None, return_attention=True,
            out_dtype=out_dtype, backend=call.backend,
        )  # fmt: skip

    names = ("x", "scale", "v", "shift", "b")
    if call.tool == "dual":
        _judge_dual(call, given, lambda x: function(x, *map(given.parameters.get, names[1:]))[0])
        return
    y, A = called(call, function, *map(leaves.get, names))
    assert y.dtype == (out_dtype or given.x.dtype)
    assert y.stride() == torch.empty_like(given.x).stride()
    gradients = {} if call.tool in NO_GRADIENTS else gradients_of(call, given, (y, A), leaves)
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.dtype == leaves[name].dtype, name
    case = Case(
        given.x, given.parameters["scale"], given.parameters.get("shift"), given.parameters["v"],
        given.parameters.get("b"), call.num_splits, call.relu, call.relu,
        None if call.arriving == "A" else given.dy, None if call.arriving == "y" else given.d_attention,
    )  # fmt: skip
    results = Results(
        y=y.detach(), A=A.detach(), interpreted=call.backend == "triton" and device_of(call) == "cpu",
        **{f"d{name}": gradient for name, gradient in gradients.items()},
    )  # fmt: skip
    if call.special in ("nan", "inf", "-inf"):
        _judge_not_finite(call, case, results)
        return
    if y.dtype.itemsize < given.x.dtype.itemsize:  # an out_dtype of fewer bits, of which golden knows no budget
        torch.testing.assert_close(y.double(), run_reference(case, torch.float64).y, rtol=4e-3 * 2, atol=1e-6)
        results.y = None
    try:
        check(case, results)
    except AssertionError:
        if not _near_a_kink(case):
            raise


def _judge_dual(call: Call, given: Given, function: Callable[[Tensor], Tensor]) -> None:
    """The derivative along dy, forward; a backend may also raise."""
    if call.special or torch.finfo(given.x.dtype).bits < 32:
        return
    tangent = given.dy.to(given.x.dtype)
    try:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(function(forward_ad.make_dual(given.x, tangent))).tangent
    except (RuntimeError, NotImplementedError):
        return
    double = {name: p.double() for name, p in given.parameters.items()}

    def exact(x: Tensor) -> Tensor:
        return reference.general_form(
            x, double["scale"], double.get("shift"), double["v"], double.get("b"), call.num_splits, relu_u=call.relu,
            relu_z=call.relu,
        )[0]  # fmt: skip

    _, right = torch.func.jvp(exact, (given.x.double(),), (tangent.double(),))
    assert found is not None, "the tangent is lost"
    error = float((found.double() - right).norm() / right.norm())
    allowed = 1e4 * torch.finfo(given.x.dtype).eps + torch.finfo(found.dtype).eps  # it has the type of y
    assert error <= allowed, f"tangent: off by {error:.1e}"


def _judge_not_finite(call: Call, case: Case, results: Results) -> None:
    golden = run_reference(case, torch.float64)
    precision = torch.finfo(min(case.x.dtype, results.y.dtype, key=lambda dtype: dtype.itemsize)).eps
    lost = golden.A.isnan().flatten(2).any(2).repeat_interleave(call.group, dim=1)[:, :, None, None]
    more = {"dx": lost, "dv": ~golden.dscale.isfinite()}
    for name in ("y", "A", "dx", "dscale", "dshift", "dv", "db"):
        ours, theirs = getattr(results, name), getattr(golden, name)
        if ours is None:
            continue
        if call.backend == "triton" and name == "db" and not call.relu:  # exactly 0: docs/kernels.md
            theirs = torch.zeros_like(theirs)
        if call.backend == "triton" and name in more:  # docs/kernels.md
            theirs = theirs.masked_fill(more[name] & ~ours.isfinite(), torch.nan)
        if call.backend == "triton" and name == "dv" and call.relu:  # likewise: no u of the channel is above 0
            theirs = theirs.masked_fill((golden.dscale == 0) & (ours == 0), 0.0)
        # (1 + A) x and x + A x differ where A is 0 and x infinite: infinity and NaN, which count as one here
        ours, theirs = (t.double().masked_fill(~t.isfinite(), torch.nan) for t in (ours, theirs))
        assert torch.equal(ours.isnan(), theirs.isnan()), f"{name}: NaN or infinity elsewhere than in float64"
        size = theirs.nan_to_num(0.0).abs().max().clamp_min(1) * 1e3
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=float(size * precision), equal_nan=True, msg=name)


def _near_a_kink(case: Case) -> bool:
    """Whether some u or z is 0 but for rounding, where a ReLU's gradient is not decided by exact arithmetic."""
    if not (case.relu_u or case.relu_z):
        return False
    x, scale, shift, v, b = (t if t is None else t.double() for t in case.tensors())
    near = 32 * torch.finfo(case.compute_dtype).eps
    product = scale.view(-1, 1, 1) * x
    u = product if shift is None else product + shift.view(-1, 1, 1)
    z = logits(case, x, scale, shift, v, b)
    size = product.abs().max() + 1
    return bool(((u.abs() < near * size) & (u != 0)).any() or ((z.abs() < near * z.abs().max()) & (z != 0)).any())
