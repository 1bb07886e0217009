"""The judge of the backward with BatchNorm on batch statistics; what `golden` says of the budget holds here too.

Beyond it, with xc = x - mean, b = (dw rstd)^2, ~ for "in absolute values" and M values per channel:

    xc~ = |xc| + |mean|;  u~ = |scale| xc~ + |beta1|;  m~ = max over W of u~;  zhat~ = rstd2 (|z| + |mean2|)
    zn~ = 1 + |gain z| + |offset| + |lse| takes the place of z~ in A~, S~ and dl~, which are as in `golden`
    s~  = sum dl~ |zhat| + |dl| zhat~
    dz~ = |gain| (dl~ + sum dl~ / M + zhat~ |sum dl zhat| / M + |zhat| s~ / M)
    du~ = |v| times the dz~ of the windows won
    S1~ = sum du~;  S2~ = sum du~ |xc| + |du| xc~
    dx~ = |D| (1 + A~) + |scale| (du~ + S1~ / M + b (|xc| S2~ + xc~ |S2|) / M)
    dgamma1~ = |dw rstd| S2~;  dbeta1~ = S1~;  ddw~ = |gamma1| eps1 rstd^3 S2~;  dv~ = sum dz~ m~ + |dz| m~
    dgamma2~ = s~;  dbeta2~ = sum dl~

d(dw) is gamma1 eps1 rstd^2 / dw times dgamma1: autograd finds it as the difference of numbers up to 1e5 times as
large, and in float32 finds noise. So eager is no ruler for it. Its budget is made as in float64, of its terms alone;
and what golden itself loses by that cancellation, the terms of sum (gradient of dw x) x in float64, is added.

dx of 16 bits is stored twice: scale * du first, in which the means of the norm's backward are not yet subtracted.
"""

import dataclasses
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ulsam_fused.kernels.contract import NormInputs, NormSaved, Options

from tests.helpers.golden import FLOAT64_ROUNDINGS, _by_subspace, _least, _norm, _per_channel, _store, _sum_pixels
from ulsam_fused import reference

GRADIENTS = ("dx", "ddw", "dgamma1", "dbeta1", "dpw", "dgamma2", "dbeta2")


@dataclasses.dataclass
class NormCase:
    """One call and the gradients that come back. Without gamma1, dw and beta1 are an affine map; without gamma2, beta2
    is a bias."""

    x: Tensor  # [N, C, H, W]
    dw: Tensor  # [C]
    gamma1: Tensor | None  # [C]
    beta1: Tensor | None  # [C]
    pw: Tensor  # [C]
    gamma2: Tensor | None  # [g]
    beta2: Tensor | None  # [g]
    num_splits: int
    relu_u: bool
    relu_z: bool
    dy: Tensor | None  # [N, C, H, W]
    d_attention: Tensor | None  # [N, g, H, W]
    eps1: float = 1e-5
    eps2: float = 1e-3  # another one, so that a test notices which is taken

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, torch.float32)

    def options(self, *, out_dtype: torch.dtype | None = None, need_attention: bool = True) -> Options:
        return Options(
            self.num_splits, self.relu_u, self.relu_z, out_dtype, need_attention, eps1=self.eps1, eps2=self.eps2
        )

    def tensors(self) -> NormInputs:
        return NormInputs(self.x, self.dw, self.gamma1, self.beta1, self.pw, self.gamma2, self.beta2)


@dataclasses.dataclass
class Intermediates:
    """A forward in float64, [N, C, H, W] or [N, g, H, W] each but first [5, C], second [6, g] and lse [N, g]."""

    first: Tensor | None
    second: Tensor
    xc: Tensor  # x - mean, or x
    scale: Tensor  # [C]
    m: Tensor
    winner: Tensor  # the argmax of each window
    z: Tensor
    zn: Tensor
    lse: Tensor
    A: Tensor


def make_norm_case(
    shape: tuple[int, int, int, int],
    num_splits: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    *,
    batch1: bool = True,
    batch2: bool = True,
    parameters: torch.dtype | None = None,
    norms: torch.dtype | None = None,
    biases: bool = True,
    relu_u: bool = True,
    relu_z: bool = True,
    channels_last: bool = False,
    peak: float = 1.0,
    mean: float = 0.0,
    eps1: float = 1e-5,
) -> NormCase:
    """A case of normal random numbers; `peak` multiplies gamma2, or pw where there is none."""
    n, c, h, w = shape
    parameters = parameters or dtype
    norms = norms or parameters

    def draw(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, dtype)

    layout = torch.channels_last if channels_last else torch.contiguous_format
    return NormCase(
        x=(mean + draw(*shape, dtype=torch.float64)).to(dtype).contiguous(memory_format=layout),
        dw=draw(c, dtype=parameters),
        gamma1=draw(c, dtype=norms) if batch1 else None,
        beta1=draw(c, dtype=norms) if biases else None,
        pw=draw(c, dtype=parameters) * (1 if batch2 else peak),
        # of one sign: with ReLU, a map of few pixels without any positive passes nothing
        gamma2=peak * (1 + draw(num_splits, dtype=norms).abs()) if batch2 else None,
        beta2=1 + draw(num_splits, dtype=norms).abs() if biases else None,
        num_splits=num_splits,
        relu_u=relu_u,
        relu_z=relu_z,
        dy=draw(*shape, dtype=dtype).contiguous(memory_format=layout),
        d_attention=draw(n, num_splits, h, w, dtype=torch.promote_types(dtype, torch.float32)),
        eps1=eps1,
    )


# --- the forward, and the gradients by autograd ---------------------------------------------------------------------


def forward(case: NormCase) -> Intermediates:
    """Everything in float64 by the formulas, with nothing of autograd's way."""
    x, dw, gamma1, beta1, pw, gamma2, beta2 = (t if t is None else t.double() for t in case.tensors())
    g, relu_u, relu_z = case.num_splits, case.relu_u, case.relu_z
    first = None
    xc, scale = x, dw
    if gamma1 is not None:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        rstd = (dw * dw * var + case.eps1).rsqrt()
        scale = gamma1 * dw * rstd
        first = torch.stack((scale, mean, rstd, var, torch.full_like(mean, x[:, 0].numel())))
        xc = x - _per_channel(mean)
    u = _per_channel(scale) * xc
    if beta1 is not None:
        u = u + _per_channel(beta1)
    # an affine map preserves order and ties, but its rounding does not
    winner = F.max_pool2d(_per_channel(scale.sign()) * x, 3, 1, 1, return_indices=True)[1]
    m = (u.relu() if relu_u else u).flatten(2).gather(2, winner.flatten(2)).view_as(u)
    z = _by_subspace(_per_channel(pw) * m, g).sum(2)
    zero = z.new_zeros(g)
    if gamma2 is not None:
        mean2, var2 = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
        rstd2 = (var2 + case.eps2).rsqrt()
        gain = gamma2 * rstd2
        offset = (0 if beta2 is None else beta2) - gain * mean2
        second = torch.stack((gain, offset, mean2, rstd2, var2, torch.full_like(mean2, z[:, 0].numel())))
    else:
        second = torch.stack((zero + 1, zero if beta2 is None else beta2, zero, zero + 1, zero, zero))
    zn = _per_channel(second[0]) * z + _per_channel(second[1])
    logits = zn.relu() if relu_z else zn
    lse = logits.flatten(2).logsumexp(-1)
    return Intermediates(first, second, xc, scale, m, winner, z, zn, lse, (logits - lse[:, :, None, None]).exp())


def saved(case: NormCase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, lse, first and second as a perfect forward saves them."""
    done, dtype = forward(case), case.compute_dtype
    first = torch.empty(0, device=case.x.device) if done.first is None else done.first
    return done.z.to(dtype), done.lse.to(dtype), first.to(dtype), done.second.to(dtype)


def run_norm_reference(case: NormCase, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """All gradients, by autograd through the reference in one type."""
    leaves = [t if t is None else t.detach().to(dtype).requires_grad_() for t in case.tensors()]
    x, dw, gamma1, beta1, pw, gamma2, beta2 = leaves

    def norm(gamma: Tensor | None, beta: Tensor | None, eps: float) -> reference.BatchNorm | None:
        return None if gamma is None else reference.BatchNorm(gamma, beta, None, None, True, 0.1, eps)

    outputs = reference.batch_norm_form(
        x, dw, beta1 if gamma1 is None else None, norm(gamma1, beta1, case.eps1),
        pw, beta2 if gamma2 is None else None, norm(gamma2, beta2, case.eps2),
        case.num_splits, relu_u=case.relu_u, relu_z=case.relu_z,
    )  # fmt: skip
    arriving = [
        (out, gradient.to(dtype))
        for out, gradient in zip(outputs, (case.dy, case.d_attention), strict=True)
        if gradient is not None
    ]
    gradients = iter(
        torch.autograd.grad(
            [out for out, _ in arriving], [t for t in leaves if t is not None], [d for _, d in arriving],
            materialize_grads=True,
        )
    )  # fmt: skip
    return {name: None if t is None else next(gradients) for name, t in zip(GRADIENTS, leaves, strict=True)}


def run_norm_backward(module: ModuleType, case: NormCase, **launch: Any) -> dict[str, Tensor | None]:
    """A backend module's norm_backward on a perfect forward, its shapes, types and strides checked."""
    gradients = module.norm_backward(
        case.dy, case.d_attention, case.tensors(), NormSaved(*saved(case)), case.options(), None, **launch
    )
    for name, gradient, t in zip(GRADIENTS, gradients, case.tensors(), strict=True):
        assert (gradient is None) == (t is None), name
        if t is not None:
            promised = torch.empty_like(t) if name == "dx" else t.contiguous()
            assert (gradient.shape, gradient.stride(), gradient.dtype) == (t.shape, promised.stride(), t.dtype), name
    places = [t.untyped_storage().data_ptr() for t in gradients if t is not None]
    assert len(set(places)) == len(places), "gradients must not share memory"
    return dict(zip(GRADIENTS, gradients, strict=True))


# --- judging it ---------------------------------------------------------------------------------------------------


def check_norm(
    case: NormCase,
    results: dict[str, Tensor | None],
    golden: dict[str, Tensor | None] | None = None,
    *,
    interpreted: bool = False,
) -> None:
    """Every gradient is within its budget, and dy in place of dx would not be.

    Raises:
        AssertionError: one is not; the message lists all errors and budgets.
    """
    __tracebackhide__ = True
    golden = golden or run_norm_reference(case, torch.float64)
    allowed = budgets(case, golden, results, interpreted)
    found = {name: (_norm(results[name].double() - golden[name]), budget) for name, budget in allowed.items()}
    assert all(error <= budget for error, budget in found.values()), "\n".join(
        f"{name:8}{'ok  ' if error <= budget else 'FAIL'} error {error:.2e}, budget {budget:.2e}"
        for name, (error, budget) in found.items()
    )
    identity = torch.zeros_like(golden["dx"]) if case.dy is None else case.dy.double()
    assert _norm(identity - golden["dx"]) > allowed["dx"], "a backward that returns dy passes"


def budgets(
    case: NormCase, golden: dict[str, Tensor | None], results: dict[str, Tensor | None], interpreted: bool
) -> dict[str, float]:
    """How far each gradient may be from golden, in the Frobenius norm."""
    wide = case.compute_dtype == torch.float64
    eager = golden if wide else run_norm_reference(case, case.compute_dtype)
    terms = _terms(case)
    found = {}
    for name, result in results.items():
        if result is None:
            continue
        as_float64 = wide or (name == "ddw" and case.gamma1 is not None)
        roundings = FLOAT64_ROUNDINGS if as_float64 else 1
        budget = roundings * torch.finfo(case.compute_dtype).eps * _norm(terms[name])
        if not as_float64:
            budget += 2 * _norm(eager[name].double() - golden[name])
        # the launcher stores some gradients of parameters, the kernels the others
        stored = _norm(golden[name]) + (_norm(terms["stored du"]) if name == "dx" else 0.0)
        stores = 2 if name == "dx" else 1
        budget += _store(result.dtype, interpreted) * stored
        budget += stores * _least(result.dtype) * result.numel() ** 0.5
        if name == "ddw":
            budget += FLOAT64_ROUNDINGS * torch.finfo(torch.float64).eps * _norm(terms["golden ddw"])
        found[name] = budget
    return found


def _terms(case: NormCase) -> dict[str, Tensor]:
    done = forward(case)
    x, dw, gamma1, beta1, pw, _, _ = (t if t is None else t.double() for t in case.tensors())
    g, A, scale, xc = case.num_splits, done.A, done.scale, done.xc
    group = x.shape[1] // g
    lse = done.lse.abs()[:, :, None, None]
    gain, offset, mean2, rstd2, _, count2 = (_per_channel(row) for row in done.second)
    zn_abs = 1 + (gain * done.z).abs() + offset.abs() + lse
    A_abs = A * (zn_abs + _sum_pixels(A * zn_abs))

    def spread(t: Tensor) -> Tensor:
        return t.repeat_interleave(group, dim=1)

    def routed(t: Tensor) -> Tensor:
        return torch.zeros_like(x).flatten(2).scatter_add_(2, done.winner.flatten(2), spread(t).flatten(2)).view_as(x)

    def over_pixels(t: Tensor) -> Tensor:
        return t.sum((0, 2, 3))

    D = torch.zeros_like(x) if case.dy is None else case.dy.double()
    d_attention = torch.zeros_like(A) if case.d_attention is None else case.d_attention.double()
    dA = _by_subspace(D * x, g).sum(2) + d_attention
    dA_abs = _by_subspace((D * x).abs(), g).sum(2) + d_attention.abs()
    S = _sum_pixels(A * dA)
    on = (done.zn > 0) | (not case.relu_z)
    centred = zn_abs * (dA - S).abs()
    S_abs = _sum_pixels(A * (dA_abs * (1 + lse) + centred))
    dl = A * (dA - S) * on
    dl_abs = A * (centred + dA_abs + S_abs) * on
    zhat, zhat_abs = (done.z - mean2) * rstd2, rstd2 * (done.z.abs() + mean2.abs())
    s_abs = over_pixels(dl_abs * zhat.abs() + dl.abs() * zhat_abs)
    dz, dz_abs = dl, dl_abs
    if case.gamma2 is not None:
        mean_dl, mean_dlz = (_per_channel(over_pixels(t)) / count2 for t in (dl, dl * zhat))
        dz = gain * (dl - mean_dl - zhat * mean_dlz)
        mean_abs = _per_channel(over_pixels(dl_abs)) / count2
        dz_abs = dl_abs + mean_abs + zhat_abs * mean_dlz.abs() + zhat.abs() * _per_channel(s_abs) / count2
        dz_abs = gain.abs() * dz_abs
    u = _per_channel(scale) * xc + (0 if beta1 is None else _per_channel(beta1))
    on = (u > 0) | (not case.relu_u)
    du, du_abs = _per_channel(pw) * routed(dz) * on, _per_channel(pw.abs()) * routed(dz_abs) * on
    mean = torch.zeros_like(scale) if done.first is None else done.first[1]
    xc_abs = xc.abs() + _per_channel(mean.abs())
    u_abs = _per_channel(scale.abs()) * xc_abs + (0 if beta1 is None else _per_channel(beta1.abs()))
    m_abs = F.max_pool2d(u_abs, 3, 1, 1)
    S1_abs, S2_abs = over_pixels(du_abs), over_pixels(du_abs * xc.abs() + du.abs() * xc_abs)
    to_x = du_abs
    terms = {
        "dbeta1": S1_abs,
        "dpw": over_pixels(spread(dz_abs) * done.m.abs() + spread(dz.abs()) * m_abs),
        "dgamma2": s_abs,
        "dbeta2": over_pixels(dl_abs),
        "stored du": torch.zeros_like(x) if gamma1 is None else _per_channel(scale) * du,
        "golden ddw": over_pixels(du_abs * x.abs()),
    }
    if done.first is None:
        terms["ddw"] = over_pixels(du_abs * x.abs())
    else:
        _, _, rstd, _, count = done.first
        b = _per_channel((dw * rstd).square() / count)
        S1, S2 = over_pixels(du).abs(), over_pixels(du * xc).abs()
        to_x = to_x + _per_channel(S1_abs / count) + b * (xc.abs() * _per_channel(S2_abs) + xc_abs * _per_channel(S2))
        # autograd adds up the gradient of dw * x, times x
        du_lin = du.abs() + _per_channel(S1 / count) + b * xc_abs * _per_channel(S2)
        terms["golden ddw"] = over_pixels(_per_channel((gamma1 * rstd).abs()) * du_lin * x.abs())
        terms["dgamma1"] = (dw * rstd).abs() * S2_abs
        terms["ddw"] = gamma1.abs() * case.eps1 * rstd**3 * S2_abs
    terms["dx"] = D.abs() * (1 + spread(A_abs)) + _per_channel(scale.abs()) * to_x
    return terms
