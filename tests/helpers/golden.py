"""The judge of every implementation: the reference in float64, and how far from it a result may be.

A result q passes when, in the Frobenius norm,

    ||q - golden|| <= 2 ||eager - golden|| + eps ||terms|| + store ||golden||

    golden   the reference in float64 on the same inputs
    eager    the reference in the type of computation: float32, or float64 for float64 x. Inputs of 16 bits are
             thus judged more strictly than by what eager PyTorch loses in 16 bits.
    eps      of that type; for float64, where eager is golden itself, FLOAT64_ROUNDINGS times as much in its place
    terms    what is added up to give q, in absolute values: q itself may cancel. db and dshift without ReLU, and all
             parameter gradients of maps whose windows coincide, are sums that vanish, and 0 is no ruler.
    store    the rounding of a result stored in 16 bits: half an ulp to nearest, a whole one where Triton's interpreter
             truncates bfloat16

y is judged as y - x, because y is nearly x: a kernel that returns x passes any usual tolerance on y. That needs a y of
32 bits or more (out_dtype=torch.float32 beside 16-bit x); a y of 16 bits must be golden's, element by element, but for
the rounding of that one store.

terms, to first order in eps, with the symbols of reference.py, ~ for "in absolute values", D = dy:

    u~ = |scale x| + |shift|;   m~ = max over W of u~;   z~ = 1 + sum |v| m~ + |b| + |lse|
    A~ = A (z~ + sum A z~);     (y - x)~ = A~ |x| + |y|
    dA~ = sum |D x| + |dA|;     S~ = sum A dA~ (1 + |lse|) + sum A z~ |dA - S|
    dl~ = A (z~ |dA - S| + dA~ + S~);   du~ = |v| times the dl~ of the windows won
    dx~ = |D| (1 + A~) + |scale| du~;   dscale~ = sum du~ |x|;   dshift~ = sum du~;   dv~ = sum dl~ m~;   db~ = sum dl~
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ulsam_fused.kernels.contract import Inputs, Options

import ulsam_fused as uf
from ulsam_fused import reference

FLOAT64_ROUNDINGS = 4
GRADIENTS = ("dx", "dscale", "dshift", "dv", "db")


@dataclasses.dataclass
class Case:
    """One call of the general form and the gradients that come back; dy or d_attention may be None, not both."""

    x: Tensor  # [N, C, H, W]
    scale: Tensor  # [C]
    shift: Tensor | None  # [C]
    v: Tensor  # [C]
    b: Tensor | None  # [g]
    num_splits: int
    relu_u: bool
    relu_z: bool
    dy: Tensor | None  # [N, C, H, W]
    d_attention: Tensor | None  # [N, g, H, W]

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, torch.float32)

    def options(self, *, out_dtype: torch.dtype | None = None, need_attention: bool = True) -> Options:
        return Options(self.num_splits, self.relu_u, self.relu_z, out_dtype, need_attention)

    def tensors(self) -> Inputs:
        return Inputs(self.x, self.scale, self.shift, self.v, self.b)


@dataclasses.dataclass
class Results:
    """What an implementation gave; None: not asked for, or (dshift, db) no such parameter."""

    y: Tensor | None = None
    A: Tensor | None = None
    dx: Tensor | None = None
    dscale: Tensor | None = None
    dshift: Tensor | None = None
    dv: Tensor | None = None
    db: Tensor | None = None
    interpreted: bool = False  # stored by Triton's interpreter, which truncates to bfloat16


def make_case(
    shape: tuple[int, int, int, int],
    num_splits: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    *,
    parameters: torch.dtype | None = None,
    shift: bool = True,
    b: bool = True,
    relu_u: bool = False,
    relu_z: bool = False,
    channels_last: bool = False,
    gain: float = 2.0,
    d_attention: bool = True,
) -> Case:
    """A case of normal random numbers; gain multiplies v: the larger, the more peaked the maps."""
    n, c, h, w = shape

    def draw(*size: int, dtype: torch.dtype | None = parameters or dtype) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, dtype)

    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Case(
        x=draw(*shape, dtype=dtype).contiguous(memory_format=layout),
        scale=draw(c),
        shift=draw(c) if shift else None,
        v=gain * draw(c),
        b=draw(num_splits) if b else None,
        num_splits=num_splits,
        relu_u=relu_u,
        relu_z=relu_z,
        dy=draw(*shape, dtype=dtype).contiguous(memory_format=layout),
        d_attention=draw(n, num_splits, h, w, dtype=torch.promote_types(dtype, torch.float32)) if d_attention else None,
    )


def not_numbers(shape: tuple[int, int, int, int], device: str = "cpu") -> Tensor:
    """Images that hold, in this order: nothing special, NaN, inf, -inf, a corner of -inf, only -inf, only NaN, ±inf."""
    x = torch.randn(shape, dtype=torch.float64)
    inf = torch.inf
    x[1, 0, 1, 2] = torch.nan
    x[2, 0, 1, 2] = inf
    x[3, 0, 1, 2] = -inf
    x[4, :, :4, :4] = -inf
    x[5] = -inf
    x[6, 1] = torch.nan
    x[7, 0, 0, 0], x[7, 1, -1, -1] = inf, -inf
    return x.to(device)


# --- running an implementation ------------------------------------------------------------------------------------


def differentiate(
    function: Callable[..., tuple[Tensor, Tensor]], case: Case, dtype: torch.dtype | None = None
) -> Results:
    """y, A and all gradients of function(x, scale, shift, v, b) by autograd, computed in `dtype` or the inputs' own."""
    leaves = [t if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in case.tensors()]
    outputs = function(*leaves)
    arriving = [
        (out, gradient.to(out.dtype))
        for out, gradient in zip(outputs, (case.dy, case.d_attention), strict=True)
        if gradient is not None and out.requires_grad
    ]
    gradients = iter(
        torch.autograd.grad(
            [out for out, _ in arriving], [t for t in leaves if t is not None], [g for _, g in arriving],
            materialize_grads=True,
        )
    )  # fmt: skip
    named: dict[str, Any] = {
        name: None if t is None else next(gradients) for name, t in zip(GRADIENTS, leaves, strict=True)
    }
    y, A = (out.detach() for out in outputs)
    return Results(y=y, A=A, **named)


def run_reference(case: Case, dtype: torch.dtype) -> Results:
    """The reference in one type."""

    def general_form(
        x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return reference.general_form(x, scale, shift, v, b, case.num_splits, relu_u=case.relu_u, relu_z=case.relu_z)

    return differentiate(general_form, case, dtype)


def run_public(case: Case, backend: str, out_dtype: torch.dtype | None = None) -> Results:
    """The public function, forward and backward."""
    assert case.relu_u == case.relu_z, "the public function has one activation"

    def call(x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        return uf.subspace_attention(
            x, scale, v, case.num_splits, shift, b, activation="relu" if case.relu_u else None, return_attention=True,
            out_dtype=out_dtype, backend=backend,
        )  # fmt: skip

    results = differentiate(call, case)
    results.interpreted = backend == "triton" and case.x.device.type == "cpu"
    return results


def run_forward(
    module: ModuleType,
    case: Case,
    *,
    out_dtype: torch.dtype | None = None,
    need_attention: bool = True,
    **launch: Any,  # such as config
) -> tuple[Results, Tensor, Tensor]:
    """A backend module's forward, its shapes, types and strides checked; also returns z and lse."""
    options = case.options(out_dtype=out_dtype, need_attention=need_attention)
    y, A, z, lse = module.forward(case.tensors(), options, **launch)
    n, _, h, w = case.x.shape
    promised = torch.empty_like(case.x, dtype=out_dtype)
    assert (y.shape, y.stride(), y.dtype) == (promised.shape, promised.stride(), promised.dtype)
    assert z.shape == (n, case.num_splits, h, w)
    assert z.is_contiguous()
    assert lse.shape == (n, case.num_splits)
    assert (A is not None) == need_attention
    assert all(t.is_contiguous() and t.dtype == case.compute_dtype for t in (z, lse, A) if t is not None)
    assert A is None or A.shape == z.shape
    interpreted = getattr(module, "INTERPRETED", False)
    return Results(y=y, A=A, interpreted=interpreted), z, lse


def run_backward(module: ModuleType, case: Case, z: Tensor, lse: Tensor, **launch: Any) -> Results:
    """A backend module's backward, its shapes, types and strides checked."""
    gradients = module.backward(case.dy, case.d_attention, case.tensors(), z, lse, case.options(), **launch)
    for name, gradient, t in zip(GRADIENTS, gradients, case.tensors(), strict=True):
        assert (gradient is None) == (t is None), name
        if t is not None:
            promised = torch.empty_like(t)
            assert (gradient.shape, gradient.stride(), gradient.dtype) == (t.shape, promised.stride(), t.dtype), name
    interpreted = getattr(module, "INTERPRETED", False)
    return Results(**dict(zip(GRADIENTS, gradients, strict=True)), interpreted=interpreted)


def attention_of(case: Case, z: Tensor, lse: Tensor) -> Tensor:
    """The A that backward rebuilds from what was saved."""
    return ((z.relu() if case.relu_z else z) - lse[:, :, None, None]).exp()


def saved(case: Case) -> tuple[Tensor, Tensor]:
    """z and lse as a perfect forward saves them, for a backward to be tested alone."""
    z = logits(case, *_float64(case))
    lse = (z.relu() if case.relu_z else z).flatten(2).logsumexp(-1)
    return z.to(case.compute_dtype), lse.to(case.compute_dtype)


def logits(case: Case, x: Tensor, scale: Tensor, shift: Tensor | None, v: Tensor, b: Tensor | None) -> Tensor:
    """z before act_z [N, g, H, W]; x may be some rows of the case's."""
    u = _per_channel(scale) * x
    if shift is not None:
        u = u + _per_channel(shift)
    z = _by_subspace(_per_channel(v) * F.max_pool2d(u.relu() if case.relu_u else u, 3, 1, 1), case.num_splits).sum(2)
    return z if b is None else z + _per_channel(b)


# --- judging it ---------------------------------------------------------------------------------------------------


def check(case: Case, results: Results) -> None:
    """Every result that is there is within its budget.

    Raises:
        AssertionError: one is not, or there is nothing to compare; the message lists all errors and budgets.
    """
    __tracebackhide__ = True
    found = errors(case, results)
    assert found, "nothing to compare"
    assert all(error <= budget for error, budget in found.values()), "\n".join(
        f"{name:8}{'ok  ' if error <= budget else 'FAIL'} error {error:.2e}, budget {budget:.2e}"
        for name, (error, budget) in found.items()
    )


def errors(case: Case, results: Results) -> dict[str, tuple[float, float]]:
    """(error, budget) of every result that is there."""
    golden = run_reference(case, torch.float64)
    eager = golden if case.compute_dtype == torch.float64 else run_reference(case, case.compute_dtype)
    terms = _terms(case, golden)
    x = case.x.double()
    found = {}
    if results.y is not None and results.y.dtype.itemsize == 2:
        found["y"] = _rounding_error(case, results, golden, terms)
    elif results.y is not None:
        true, ruler = golden.y - x, eager.y.double() - x
        found["y - x"] = _norm(results.y.double() - x - true), _budget(case, true, ruler, terms.y)
    for name in ("A", *GRADIENTS):
        value, true = getattr(results, name), getattr(golden, name)
        if value is not None:
            kernel_stores = results.interpreted and name == "dx"  # sums over programs are PyTorch's
            store = _store(value.dtype, kernel_stores) * _norm(true) + _least(value.dtype) * true.numel() ** 0.5
            ruler = getattr(eager, name).double()
            budget = _budget(case, true, ruler, getattr(terms, name)) + store
            found[name] = _norm(value.double() - true), budget
    return found


def _budget(case: Case, golden: Tensor, eager: Tensor, terms: Tensor) -> float:
    roundings = FLOAT64_ROUNDINGS if case.compute_dtype == torch.float64 else 1
    return 2 * _norm(eager - golden) + roundings * torch.finfo(case.compute_dtype).eps * _norm(terms)


def _rounding_error(case: Case, results: Results, golden: Results, terms: Results) -> tuple[float, float]:
    """The largest error of a y of 16 bits, in units of what one rounding of golden's y explains."""
    dtype = results.y.dtype
    ulp = torch.finfo(dtype).eps * torch.exp2(torch.frexp(golden.y.abs()).exponent - 1.0)
    explained = _store(dtype, results.interpreted) * (ulp / torch.finfo(dtype).eps) + _least(dtype)
    explained = explained + torch.finfo(case.compute_dtype).eps * terms.y
    return ((results.y.double() - golden.y).abs() / explained).max().item(), 1.0


def _store(dtype: torch.dtype, interpreted: bool) -> float:
    """The relative rounding of storing a result of the computation in this type."""
    if dtype.itemsize > 2:
        return 0.0
    return torch.finfo(dtype).eps * (1.0 if interpreted and dtype == torch.bfloat16 else 0.5)


def _least(dtype: torch.dtype) -> float:
    """The absolute rounding of storing a number too small for the relative one."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0


def _terms(case: Case, golden: Results) -> Results:
    x, scale, shift, v, b = _float64(case)
    g = case.num_splits
    z = logits(case, x, scale, shift, v, b)
    lse = (z.relu() if case.relu_z else z).flatten(2).logsumexp(-1).abs()[:, :, None, None]
    A = golden.A
    u_abs = (_per_channel(scale) * x).abs()
    if shift is not None:
        u_abs = u_abs + _per_channel(shift.abs())
    m_abs = F.max_pool2d(u_abs, 3, 1, 1)
    z_abs = _by_subspace(_per_channel(v.abs()) * m_abs, g).sum(2)
    if b is not None:
        z_abs = z_abs + _per_channel(b.abs())

    D = torch.zeros_like(x) if case.dy is None else case.dy.double()
    d_attention = torch.zeros_like(A) if case.d_attention is None else case.d_attention.double()
    A_abs, _, dl_abs = map_terms(A, z_abs, lse, D * x, d_attention)
    spread = dl_abs.repeat_interleave(x.shape[1] // g, dim=1)
    pooled, winner = F.max_pool2d(_per_channel(scale.sign()) * x, 3, 1, 1, return_indices=True)
    routed = torch.zeros_like(pooled).flatten(2).scatter_add_(2, winner.flatten(2), spread.flatten(2)).view_as(x)
    du_abs = _per_channel(v.abs()) * routed
    A_wide = A_abs.repeat_interleave(x.shape[1] // g, dim=1)
    return Results(
        y=A_wide * x.abs() + golden.y.abs(),
        A=A_abs,
        dx=D.abs() * (1 + A_wide) + _per_channel(scale.abs()) * du_abs,
        dscale=(du_abs * x.abs()).sum((0, 2, 3)),
        dshift=du_abs.sum((0, 2, 3)),
        dv=(spread * m_abs).sum((0, 2, 3)),
        db=dl_abs.sum((0, 2, 3)),
    )


def map_terms(A: Tensor, z_abs: Tensor, lse: Tensor, d_x: Tensor, d_attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A~, dl and dl~ [N, g, H, W], of z~ without 1 and |lse|, |lse| [N, g, 1, 1], D x [N, C, H, W] and A's gradient."""
    z_abs = 1 + z_abs + lse
    dA = _by_subspace(d_x, A.shape[1]).sum(2) + d_attention
    dA_abs = _by_subspace(d_x.abs(), A.shape[1]).sum(2) + d_attention.abs()
    centred = dA - _sum_pixels(A * dA)
    spread = z_abs * centred.abs()
    dl_abs = A * (spread + dA_abs + _sum_pixels(A * (dA_abs * (1 + lse) + spread)))
    return A * (z_abs + _sum_pixels(A * z_abs)), A * centred, dl_abs


def _float64(case: Case) -> list[Any]:
    return [t if t is None else t.double() for t in case.tensors()]


def _norm(t: Tensor) -> float:
    return float(t.norm())


def _per_channel(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1)


def _by_subspace(t: Tensor, num_splits: int) -> Tensor:
    """[N, C, H, W] as [N, g, G, H, W]."""
    by_subspace: Tensor = t.unflatten(1, (num_splits, -1))
    return by_subspace


def _sum_pixels(t: Tensor) -> Tensor:
    return t.sum((2, 3), keepdim=True)
