"""The judge of the forward with BatchNorm on batch statistics. A result passes when, in the Frobenius norm,

    ||q - golden|| <= 2 ||eager - golden|| + eps ||terms|| + store ||golden||                    as in `golden`

For y, A and the running statistics golden and eager are `reference.batch_norm_form`, in float64 and in the type of
computation. For z, lse, first and second golden are the formulas in float64; there is no eager to compare with, and
FLOAT64_ROUNDINGS eps stand in place of eps. Counts are exact.

terms, to first order in eps, ~ for "in absolute values", E the mean over N, H and W, d. a relative error:

    xc = x - mean;  var~ = var + 2 E |xc| |x|;  dr1 = 1 + dw^2 rstd^2 E |xc| |x|;  scale~ = |scale| dr1
    u~ = |scale| (|x| + |mean| + |xc| dr1) + |beta1|;  m~ = max over W of u~;  z~ = sum |pw| m~
    zc = z - mean2;  var2~ = var2 + 2 E |zc| z~;  dr2 = 1 + rstd2^2 E |zc| z~;  gain~ = |gain| dr2
    offset~ = |beta2| + |gain| (E z~ + |mean2|) + |gain mean2| dr2
    zn~ = 1 + |gain| (z~ + E z~ + |zc| dr2) + |gain z| + |offset|;  lse~ = |lse| + sum A zn~
    A~ = A (zn~ + lse~ + sum A zn~);  (y - x)~ = A~ |x| + |y|
"""

import dataclasses
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange, Running

from tests.helpers.golden import (
    FLOAT64_ROUNDINGS,
    Results,
    _by_subspace,
    _least,
    _norm,
    _per_channel,
    _rounding_error,
    _store,
)
from tests.helpers.golden import _sum_pixels as sum_pixels
from tests.helpers.norm_golden import NormCase, forward
from ulsam_fused import reference

FIRST = ("scale", "mean", "rstd", "var", "count")
SECOND = ("gain", "offset", "mean2", "rstd2", "var2", "count2")


@dataclasses.dataclass
class Buffers:
    """Running statistics and biases of both norms."""

    mean1: Tensor  # [C]
    var1: Tensor
    bias1: Tensor | None
    mean2: Tensor  # [g]
    var2: Tensor
    bias2: Tensor | None
    momentum1: float = 0.1
    momentum2: float = 0.3

    def clone(self, dtype: torch.dtype | None = None) -> "Buffers":
        """A copy, the biases' too, in another type if given."""

        def copy(value: Any) -> Any:
            return value.to(dtype or value.dtype, copy=True) if isinstance(value, Tensor) else value

        return Buffers(*(copy(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def running(self) -> tuple[Running, Running]:
        return (
            Running(self.mean1, self.var1, self.bias1, self.momentum1),
            Running(self.mean2, self.var2, self.bias2, self.momentum2),
        )


def make_buffers(case: NormCase, dtype: torch.dtype | None = None, *, biases: bool = True) -> Buffers:
    """Normal random numbers, variances positive."""
    parameters = case.dw.dtype

    def draw(size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, dtype=torch.float64).to(case.x.device, dtype)

    c, g = case.x.shape[1], case.num_splits
    dtype = dtype or case.compute_dtype
    return Buffers(
        draw(c, dtype), draw(c, dtype).abs() + 0.1, draw(c, parameters) if biases else None,
        draw(g, dtype), draw(g, dtype).abs() + 0.1, draw(g, parameters) if biases else None,
    )  # fmt: skip


def run_reference(case: NormCase, buffers: Buffers, dtype: torch.dtype, batch: bool | None = None) -> dict[str, Tensor]:
    """y, A and the running statistics after one call in one type; `batch` True or False decides for both norms.

    The buffers are not changed. A norm that the case does not have stands for a plain affine map.
    """
    x, dw, gamma1, beta1, pw, gamma2, beta2 = (t if t is None else t.to(dtype) for t in case.tensors())
    b = buffers.clone(dtype)

    def norm(gamma: Tensor | None, beta: Tensor | None, running: Running, eps: float) -> reference.BatchNorm | None:
        if gamma is None:
            return None
        mean, var, _, momentum = running
        beta = torch.zeros_like(gamma) if beta is None else beta
        return reference.BatchNorm(gamma, beta, mean, var, batch is not False, momentum, eps)

    running1, running2 = b.running()
    y, A = reference.batch_norm_form(
        x, dw, beta1 if gamma1 is None else b.bias1, norm(gamma1, beta1, running1, case.eps1),
        pw, beta2 if gamma2 is None else b.bias2, norm(gamma2, beta2, running2, case.eps2),
        case.num_splits, relu_u=case.relu_u, relu_z=case.relu_z,
    )  # fmt: skip
    return {"y": y, "A": A, "mean1": b.mean1, "var1": b.var1, "running mean2": b.mean2, "running var2": b.var2}


def run_norm_forward(
    module: ModuleType,
    case: NormCase,
    buffers: Buffers | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    need_attention: bool = True,
    group: Any = None,
    **launch: Any,
) -> dict[str, Tensor]:
    """A backend module's norm_forward, its shapes, types and strides checked; the buffers are updated."""
    running1, running2 = (None, None) if buffers is None else buffers.running()
    exchange = Exchange(
        running1 if case.gamma1 is not None else None, running2 if case.gamma2 is not None else None, group
    )
    options = case.options(out_dtype=out_dtype, need_attention=need_attention)
    y, A, z, lse, first, second = module.norm_forward(case.tensors(), options, exchange, **launch)
    n, c, h, w = case.x.shape
    g = case.num_splits
    promised = torch.empty_like(case.x, dtype=out_dtype)
    assert (y.shape, y.stride(), y.dtype) == (promised.shape, promised.stride(), promised.dtype)
    assert z.shape == (n, g, h, w)
    assert (A is not None) == need_attention
    assert A is None or A.shape == z.shape
    assert lse.shape == (n, g)
    assert first.shape == ((0,) if case.gamma1 is None else (5, c))
    assert second.shape == (6, g)
    assert all(t.is_contiguous() and t.dtype == case.compute_dtype for t in (A, z, lse, first, second) if t is not None)
    results = {"y": y, "z": z, "lse": lse, **dict(zip(SECOND, second, strict=True))}
    if need_attention:
        results["A"] = A
    if case.gamma1 is not None:
        results |= dict(zip(FIRST, first, strict=True))
    return results


def check_norm_forward(
    case: NormCase,
    results: dict[str, Tensor],
    *,
    interpreted: bool,
    buffers: Buffers | None = None,  # as they were before
    after: Buffers | None = None,
    batch: bool = True,
) -> None:
    """Every result is within its budget, and x in place of y would not be.

    Raises:
        AssertionError: one is not; the message lists all errors and budgets.
    """
    __tracebackhide__ = True
    given = buffers or make_buffers(case)
    golden = run_reference(case, given, torch.float64, batch)
    eager = golden if case.compute_dtype == torch.float64 else run_reference(case, given, case.compute_dtype, batch)
    terms: dict[str, Tensor] = {}
    if batch:
        values, terms = _terms(case)
        golden = golden | values
    else:
        values, terms = _folded_terms(case, given)
    if after is not None and buffers is not None:
        kept = {"mean1": after.mean1, "var1": after.var1, "running mean2": after.mean2, "running var2": after.var2}
        results = results | kept
        factors = {"mean1": case.dw.double().abs(), "var1": case.dw.double().square()}
        biases = {"mean1": given.bias1, "running mean2": given.bias2}
        sources = {"mean1": "mean", "var1": "var", "running mean2": "mean2", "running var2": "var2"}
        for name, source in sources.items():
            terms[name] = golden[name].abs()
            if source in terms:  # else that norm is not there, and its statistics stay
                terms[name] = terms[name] + factors.get(name, 1.0) * terms[source]
                if biases.get(name) is not None:
                    terms[name] = terms[name] + biases[name].double().abs()
    x = case.x.double()
    eps = torch.finfo(case.compute_dtype).eps
    found = {}
    for name, result in results.items():
        true = golden[name]
        if name == "y" and result.dtype.itemsize == 2:
            as_case: Any = case  # of which only the type of computation is read
            y = Results(y=result, interpreted=interpreted)
            found[name] = _rounding_error(as_case, y, Results(y=true), Results(y=terms["y"]))
            continue
        error = _norm(result.double() - true)
        if name.startswith("count"):
            found[name] = error, 0.0
            continue
        roundings = 1 if name in eager and eager is not golden else FLOAT64_ROUNDINGS
        budget = roundings * eps * _norm(terms[name])
        if name in eager and eager is not golden:
            budget += 2 * _norm(eager[name].double() - true)
        budget += _store(result.dtype, interpreted) * _norm(true) + _least(result.dtype) * true.numel() ** 0.5
        if name == "y":
            assert _norm(x - true) > budget, "a forward that returns x passes"
        found[name] = error, budget
    assert {"y"} <= found.keys()
    assert all(error <= budget for error, budget in found.values()), "\n".join(
        f"{name:14}{'ok  ' if error <= budget else 'FAIL'} error {error:.2e}, budget {budget:.2e}"
        for name, (error, budget) in found.items()
    )


def _terms(case: NormCase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(golden, terms) of everything but the running statistics, and terms of y and A."""
    done = forward(case)
    x, dw, _, beta1, pw, _, beta2 = (t if t is None else t.double() for t in case.tensors())
    golden = {"z": done.z, "lse": done.lse, **dict(zip(SECOND, done.second, strict=True))}
    terms: dict[str, Tensor] = {}
    mean, relative = torch.zeros_like(dw), torch.ones_like(dw)
    xc = done.xc
    if done.first is not None:
        golden |= dict(zip(FIRST, done.first, strict=True))
        _, mean, rstd, var, _ = done.first
        spread = (xc.abs() * x.abs()).mean((0, 2, 3))
        relative = 1 + (dw * rstd).square() * spread
        terms |= {
            "scale": done.scale.abs() * relative,
            "mean": x.abs().mean((0, 2, 3)),
            "rstd": rstd * relative,
            "var": var + 2 * spread,
        }
    u = _per_channel(done.scale.abs()) * (x.abs() + _per_channel(mean.abs()) + xc.abs() * _per_channel(relative))
    if beta1 is not None:
        u = u + _per_channel(beta1.abs())
    terms["z"] = _by_subspace(_per_channel(pw.abs()) * F.max_pool2d(u, 3, 1, 1), case.num_splits).sum(2)
    gain, offset, mean2, rstd2, var2, _ = done.second
    zeros = torch.zeros_like(gain)
    z_mean = spread = zeros
    zc = torch.zeros_like(done.z)
    if case.gamma2 is not None:
        z_mean = terms["z"].mean((0, 2, 3))
        zc = done.z - _per_channel(mean2)
        spread = (zc.abs() * terms["z"]).mean((0, 2, 3))
    relative = 1 + rstd2.square() * spread
    terms |= {
        "gain": gain.abs() * relative,
        "offset": (zeros if beta2 is None else beta2.abs())
        + gain.abs() * (z_mean + mean2.abs())
        + (gain * mean2).abs() * relative,
        "mean2": z_mean + mean2.abs(),
        "rstd2": rstd2 * relative,
        "var2": var2 + 2 * spread,
    }
    zn = 1 + _per_channel(gain.abs()) * (terms["z"] + _per_channel(z_mean) + zc.abs() * _per_channel(relative))
    zn = zn + (_per_channel(gain) * done.z).abs() + _per_channel(offset.abs())
    return golden, terms | _softmax_terms(x, zn, done.A, done.lse)


def _softmax_terms(x: Tensor, zn: Tensor, A: Tensor, lse: Tensor) -> dict[str, Tensor]:
    lse_abs = lse.abs() + sum_pixels(A * zn)[:, :, 0, 0]
    A_abs = A * (zn + lse_abs[:, :, None, None] + sum_pixels(A * zn))
    group = x.shape[1] // A.shape[1]
    y = (1 + A.repeat_interleave(group, dim=1)) * x
    return {"lse": lse_abs, "A": A_abs, "y": A_abs.repeat_interleave(group, dim=1) * x.abs() + y.abs()}


def _folded_terms(case: NormCase, buffers: Buffers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As `_terms`, both norms folded from running statistics: no statistic has an error of its own."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = (t if t is None else t.double() for t in case.tensors())
    b = buffers.clone(torch.float64)
    zero1, zero2 = torch.zeros_like(b.mean1), torch.zeros_like(b.mean2)
    bias1, bias2 = (zero1 if b.bias1 is None else b.bias1), (zero2 if b.bias2 is None else b.bias2)
    factor1, factor2 = gamma1 / (b.var1 + case.eps1).sqrt(), gamma2 / (b.var2 + case.eps2).sqrt()
    u = _per_channel(factor1 * dw) * x + _per_channel(factor1 * (bias1 - b.mean1) + beta1)
    u_abs = _per_channel((factor1 * dw).abs()) * x.abs() + _per_channel(
        factor1.abs() * (bias1.abs() + b.mean1.abs()) + beta1.abs()
    )

    def logits(u: Tensor, pw: Tensor) -> Tensor:
        return _by_subspace(_per_channel(pw) * F.max_pool2d(u, 3, 1, 1), case.num_splits).sum(2)

    zn = _per_channel(factor2) * logits(u.relu() if case.relu_u else u, pw)
    zn = zn + _per_channel(factor2 * (bias2 - b.mean2) + beta2)
    zn_abs = 1 + _per_channel(factor2.abs()) * logits(u_abs, pw.abs())
    zn_abs = zn_abs + _per_channel(factor2.abs() * (bias2.abs() + b.mean2.abs()) + beta2.abs())
    logit = zn.relu() if case.relu_z else zn
    lse = logit.flatten(2).logsumexp(-1)
    return {}, _softmax_terms(x, zn_abs, (logit - lse[:, :, None, None]).exp(), lse)
