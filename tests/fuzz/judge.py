"""Runs a `Call` and compares every value and gradient with float64.

A call of the function has the budgets of `tests.helpers.golden`. Of a layer with norms the budget is measured: eager
PyTorch runs in the call's own type on x, and on x times 1 ± epsilon, which keeps ties and signs. Its largest error, so
found, may be lucky in none of the three. NaN and infinity must be where float64 has them.
"""

import contextlib
import copy
import dataclasses
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ulsam_fused as uf
from tests.fuzz.calls import LAYOUTS, PARAMETERS, Call
from tests.helpers.golden import Case, Results, check, logits, run_reference
from ulsam_fused import reference

Outputs = dict[str, Tensor | None]
NO_GRADIENTS = ("no_grad", "inference_mode")
LUCK = 32  # how many times eager's largest error may be exceeded
LAYER_NAMES = {
    "scale": "dw_weight", "shift": "dw_bias", "v": "pw_weight", "b": "pw_bias", "gamma1": "dw_norm.weight",
    "beta1": "dw_norm.bias", "gamma2": "pw_norm.weight", "beta2": "pw_norm.bias",
}  # fmt: skip


@dataclasses.dataclass
class Given:
    """The tensors of a call; those of a norm only in a layer."""

    x: Tensor
    dy: Tensor
    d_attention: Tensor
    parameters: dict[str, Tensor]


def judge(call: Call) -> None:
    """Raises AssertionError where the call gives something else than float64, or whatever the call itself raises."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(call.seed)
        given = _given(call)
    if call.form == "function":
        _judge_function(call, given)
    else:
        _judge_layer(call, given)


# --- tensors ----------------------------------------------------------------------------------------------------------


def _given(call: Call) -> Given:
    dtype, device = getattr(torch, call.dtype), device_of(call)
    wide = torch.promote_types(dtype, torch.float32)
    parameter_type = torch.float32 if call.wide_parameters and dtype.itemsize == 2 else dtype
    channels = call.shape[1]

    def draw(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, dtype)

    x = _special(call, draw(*call.shape, dtype=dtype))
    dy = draw(*call.shape, dtype=getattr(torch, call.out_dtype or call.dtype))
    d_attention = draw(call.n, call.num_splits, call.h, call.w, dtype=wide)
    sizes = {
        name: call.num_splits if name in ("b", "gamma2", "beta2") else channels
        for name in PARAMETERS
        if not (name in ("shift", "b") and not getattr(call, name))
    }
    parameters = {name: draw(size, dtype=parameter_type) for name, size in sizes.items()}
    if call.signs != "mixed":
        parameters["scale"] = -parameters["scale"].abs() * (call.signs == "negative")
    parameters["v"] = parameters["v"] * call.gain
    if call.form == "function":
        parameters = {name: parameters[name] for name in PARAMETERS[:4] if name in parameters}
    if call.strided_parameters:
        parameters = {name: p.repeat_interleave(2)[::2] for name, p in parameters.items()}
    x, dy = (LAYOUTS.get(name, Tensor.contiguous)(t) for name, t in ((call.layout_x, x), (call.layout_dy, dy)))
    if "x" in call.negative_bit:
        x = _negative(x)
    if "dy" in call.negative_bit:
        dy = _negative(dy)
    if "parameters" in call.negative_bit:
        parameters = {name: _negative(p) for name, p in parameters.items()}
    return Given(x, dy, d_attention, parameters)


def device_of(call: Call) -> str:
    return "cuda" if call.backend == "triton" and torch.cuda.is_available() else "cpu"


def _special(call: Call, x: Tensor) -> Tensor:
    if call.special == "ties":
        return x.round()
    if call.special == "zeros":
        return x * 0
    some = (torch.rand(x.shape) < 0.1).to(x.device)
    if call.special == "denormal" and (call.shift or call.form != "function"):
        return x  # beside a shift or a mean, different x of that size are ties in float64, too
    if call.special == "denormal":
        return torch.where(some, x * torch.finfo(x.dtype).tiny, x)
    return x.masked_fill(some, float(call.special)) if call.special else x


def _negative(t: Tensor) -> Tensor:
    """The same values in a view that has the negative bit, with the same strides."""
    memory = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
    if 0 in t.stride():
        return torch._neg_view(-t)
    return torch._neg_view(memory.copy_(-t))


# --- tools ------------------------------------------------------------------------------------------------------------


def _context(call: Call) -> contextlib.AbstractContextManager[Any]:
    if call.tool == "autocast":
        return torch.autocast(device_of(call), torch.bfloat16)
    if call.tool == "no_grad":
        return torch.no_grad()
    return torch.inference_mode() if call.tool == "inference_mode" else contextlib.nullcontext()


def _called(call: Call, function: Callable[..., Any], *arguments: Any) -> Any:
    with _context(call):
        if call.tool == "checkpoint":
            return checkpoint(function, *arguments, use_reentrant=False)
        if call.tool == "compile":
            torch._dynamo.reset()
            return torch.compile(function, backend="eager")(*arguments)
        return function(*arguments)


def _leaves(call: Call, given: Given) -> dict[str, Tensor]:
    """x and the parameters; those that are not frozen need a gradient."""
    tensors = {"x": given.x, **given.parameters}
    return {name: t.detach().requires_grad_(name not in call.frozen) for name, t in tensors.items()}


def _gradients(call: Call, given: Given, outputs: tuple[Tensor, ...], leaves: dict[str, Tensor]) -> Outputs:
    """Of the leaves that need one; the outputs are y, or y and A."""
    arriving = {"y": (given.dy, None), "A": (None, given.d_attention), "both": (given.dy, given.d_attention)}
    pairs = [
        (out, gradient)
        for out, gradient in zip(outputs, arriving[call.arriving], strict=False)
        if gradient is not None and out.requires_grad
    ]
    needed = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not pairs or not needed:
        return {}
    found = torch.autograd.grad(
        [out for out, _ in pairs], list(needed.values()), [g for _, g in pairs], allow_unused=True
    )
    return dict(zip(needed, found, strict=True))


# --- the function -----------------------------------------------------------------------------------------------------


def _judge_function(call: Call, given: Given) -> None:
    leaves = _leaves(call, given)
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
    y, A = _called(call, function, *map(leaves.get, names))
    assert y.dtype == (out_dtype or given.x.dtype)
    assert y.stride() == torch.empty_like(given.x).stride()
    gradients = {} if call.tool in NO_GRADIENTS else _gradients(call, given, (y, A), leaves)
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
        _judge_not_finite(case, results)
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
    assert error <= 1e4 * torch.finfo(given.x.dtype).eps, f"tangent: off by {error:.1e}"


def _judge_not_finite(case: Case, results: Results) -> None:
    golden = run_reference(case, torch.float64)
    precision = torch.finfo(min(case.x.dtype, results.y.dtype, key=lambda dtype: dtype.itemsize)).eps
    for name in ("y", "A", "dx", "dscale", "dshift", "dv", "db"):
        ours, theirs = getattr(results, name), getattr(golden, name)
        if ours is None:
            continue
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


# --- layers -----------------------------------------------------------------------------------------------------------


def _judge_layer(call: Call, given: Given) -> None:
    if call.n * call.h * call.w == 1 and (call.dw_training or call.pw_training):
        return  # one value per channel, which is an error
    layer = _layer(call, given)
    before = {name: t.clone() for name, t in layer.named_buffers()}
    ours = _run_layer(call, given, layer)
    if call.tool == "checkpoint":  # which runs the forward again, and so updates the statistics again
        ours = {name: t for name, t in ours.items() if "running" not in name}
    golden = _eager(call, given, before, torch.float64)
    dtype = torch.promote_types(given.x.dtype, torch.float32)
    if call.special in ("nan", "inf", "-inf"):
        for name, result in ours.items():
            if result is not None and golden[name] is not None and name in ("A", "y - x"):
                assert bool((result.isfinite() | ~golden[name].isfinite()).all()), f"{name}: not finite"
        return
    if _degenerate(call, given, before):
        assert all(bool(ours[name].isfinite().all()) for name in ("A", "y - x"))  # gradients of float16 may overflow
        return
    sizes = {name: float(t.double().norm()) for name, t in {"x": given.x, **given.parameters}.items()}
    # of what a norm sees, from above
    reach = sizes["scale"] * sizes["x"] + sizes["v"] * (sizes["x"] + sizes["gamma1"] * given.x.numel() + sizes["beta1"])
    logits_size = 1 - float(golden["A"].log().clamp_min(-800).min())
    noise = dict.fromkeys(ours, 0.0)
    for step in (0, 1, -1):
        moved = dataclasses.replace(given, x=given.x.to(dtype) * (1 + step * torch.finfo(dtype).eps))
        eager = _eager(call, moved, before, dtype)
        exact = _eager(call, moved, before, torch.float64) if dtype != torch.float64 else golden
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
        roundings = (torch.finfo(stored).eps + 8 * logits_size * torch.finfo(dtype).eps) * size
        if name in PARAMETERS:  # a sum that may cancel
            roundings += 4 * torch.finfo(dtype).eps * sizes["x"] * float(given.dy.double().norm() * golden["A"].max())
        if name == "dx":  # of 16 bits it is stored twice
            roundings = 4 * torch.finfo(stored).eps * (size + float(given.dy.double().norm()))
        if "running" in name:  # where x is constant, eager may make no error at all
            rounding = torch.finfo(dtype).eps * reach
            roundings += rounding if name.endswith("mean") else rounding**2
        if name == "y - x":
            y_type = getattr(torch, call.out_dtype or call.dtype)
            roundings += torch.finfo(y_type).eps * float(given.x.double().norm() + size)
        allowed = LUCK * noise[name] + 4 * roundings + 1e-12 * (name in CANCELLED) + _least(stored, result)
        error = float((result.double() - right.double()).norm())
        assert error <= allowed or _near_a_kink_of(call, given, before), (
            f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
        )


def _degenerate(call: Call, given: Given, buffers: dict[str, Tensor]) -> bool:
    """Whether a norm sees almost a constant, so that it divides rounding noise by the root of eps."""
    whole = _eager(dataclasses.replace(call, momentum=1.0), given, buffers, torch.float64)
    return any(
        bool((whole[f"{norm}.running_var"] < 1e-9 * (1 + whole[f"{norm}.running_mean"] ** 2)).any())
        for norm, training in (("dw_norm", call.dw_training), ("pw_norm", call.pw_training))
        if training
    )


CANCELLED = ("shift", "b", "scale", "v")
"""Gradients that a norm makes vanish, or v's in the direction of v: rounding noise in eager PyTorch."""


def _least(dtype: torch.dtype, t: Tensor) -> float:
    return 4 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * t.numel() ** 0.5


def _layer(call: Call, given: Given) -> uf.ULSAM:
    options: dict[str, Any] = {
        "eps": call.eps, "momentum": call.momentum, "backend": call.backend, "dtype": given.parameters["v"].dtype,
        "device": device_of(call),
        "out_dtype": None if call.out_dtype is None else getattr(torch, call.out_dtype),
    }  # fmt: skip
    channels = call.shape[1]
    layer = uf.ULSAM(
        channels, call.num_splits, bias=True, activation="relu" if call.relu else None, norm="batch", **options
    )
    layer.legacy_maxpool_input = call.form == "legacy"
    for name, there in LAYER_NAMES.items():
        owner, _, attribute = there.rpartition(".")
        parameter = given.parameters.get(name)
        if parameter is None:
            layer.register_parameter(attribute, None)
            continue
        setattr(layer.get_submodule(owner), attribute, nn.Parameter(parameter, requires_grad=name not in call.frozen))
    generator = torch.Generator().manual_seed(call.seed)
    for norm in (layer.dw_norm, layer.pw_norm):
        norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
    layer.dw_norm.train(call.dw_training)
    layer.pw_norm.train(call.pw_training)
    if call.tool == "deepcopy":
        return copy.deepcopy(layer)
    return pickle.loads(pickle.dumps(layer)) if call.tool == "pickle" else layer


def _run_layer(call: Call, given: Given, layer: uf.ULSAM) -> Outputs:
    leaves = {"x": given.x.detach().requires_grad_("x" not in call.frozen)}
    named = dict(layer.named_parameters())
    leaves |= {name: named[there] for name, there in LAYER_NAMES.items() if there in named}

    def forward(x: Tensor) -> Tensor:
        if call.tool == "functional_call":
            return torch.func.functional_call(layer, {**named, **dict(layer.named_buffers())}, (x,))
        return layer(x)

    with torch.no_grad():
        attention = layer.attention(leaves["x"])
    y = _called(call, forward, leaves["x"])
    assert y.dtype == getattr(torch, call.out_dtype or call.dtype)
    assert y.stride() == torch.empty_like(given.x).stride()
    found: Outputs = {"y - x": y.detach().double() - given.x.double(), "A": attention}
    if call.tool not in NO_GRADIENTS:
        found |= {
            "dx" if name == "x" else name: t
            for name, t in _gradients(dataclasses.replace(call, arriving="y"), given, (y,), leaves).items()
        }
    found |= {name: t.clone() for name, t in layer.named_buffers() if "running" in name}
    return found


def _eager(call: Call, given: Given, buffers: dict[str, Tensor], dtype: torch.dtype) -> Outputs:
    """The same by the reference in one type."""
    leaves = {"x": given.x.detach().to(dtype)}
    # contiguous: PyTorch's batch_norm of a channels_last input has the wrong gradient where its weight has gaps
    leaves |= {name: p.detach().to(dtype).contiguous() for name, p in given.parameters.items()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    running = {name: t.to(dtype) if t.is_floating_point() else t for name, t in buffers.items()}
    running = {name: t.clone() for name, t in running.items()}

    def norm(gamma: str, beta: str, name: str, training: bool) -> reference.BatchNorm:
        mean, var = running[f"{name}.running_mean"], running[f"{name}.running_var"]
        momentum = 1.0 if call.momentum is None else call.momentum  # of the first batch
        return reference.BatchNorm(leaves[gamma], leaves[beta], mean, var, training, momentum, call.eps)

    y, A = reference.batch_norm_form(
        leaves["x"], leaves["scale"], leaves.get("shift"), norm("gamma1", "beta1", "dw_norm", call.dw_training),
        leaves["v"], leaves.get("b"), norm("gamma2", "beta2", "pw_norm", call.pw_training), call.num_splits,
        relu_u=call.relu, relu_z=call.relu, pool_input=call.form == "legacy",
    )  # fmt: skip
    found: Outputs = {"y - x": y.detach().double() - leaves["x"].detach().double(), "A": A.detach()}
    gradients = torch.autograd.grad(y, list(leaves.values()), given.dy.to(dtype), allow_unused=True)
    found |= {"dx" if name == "x" else name: t for name, t in zip(leaves, gradients, strict=True)}
    return found | {name: t for name, t in running.items() if "running" in name}


def _near_a_kink_of(call: Call, given: Given, buffers: dict[str, Tensor]) -> bool:
    """As `_near_a_kink`, of a layer: moving x by a few roundings moves a gradient by more than it should."""
    eps = torch.finfo(torch.promote_types(given.x.dtype, torch.float32)).eps
    dx = []
    for step in (-64, -16, -4, 0, 4, 16, 64):
        moved = dataclasses.replace(given, x=given.x.double() * (1 + step * eps))
        dx.append(_eager(call, moved, buffers, torch.float64)["dx"])
    apart = [float((b - a).norm()) for a, b in itertools.pairwise(dx)]
    return max(apart) > 1e4 * eps * float(dx[3].norm())
