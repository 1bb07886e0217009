"""Runs a `Call` and compares every value and gradient with float64.

A call of the function has the budgets of `tests.helpers.golden`. Of a layer with norms the budget is measured: eager
PyTorch runs in the call's own type on x, and on x times 1 ± epsilon, which keeps ties and signs. Its largest error, so
found, may be lucky in none of the three. NaN and infinity must be where float64 has them. Where PyTorch raises
ValueError, the layer must, too.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ulsam_fused as uf
from tests.fuzz.calls import LAYOUTS, PARAMETERS, WITHOUT_WEIGHTS, Call
from tests.helpers.authors import FrozenBatchNorm2d
from tests.helpers.golden import Case, Results, check, logits, map_terms, run_reference
from ulsam_fused import reference
from ulsam_fused.state_dict import KEYS

Outputs = dict[str, Tensor | None]
NO_GRADIENTS = ("no_grad", "inference_mode")
LUCK = 32  # how many times eager's largest error may be exceeded
LAYER_NAMES = {
    "scale": "dw_weight", "shift": "dw_bias", "v": "pw_weight", "b": "pw_bias", "gamma1": "dw_norm.weight",
    "beta1": "dw_norm.bias", "gamma2": "pw_norm.weight", "beta2": "pw_norm.bias",
}  # fmt: skip
RUNNING = [f"{norm}.{name}" for norm in ("dw_norm", "pw_norm") for name in ("running_mean", "running_var")]


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
        and not (name in ("gamma1", "beta1") and call.dw_norm in WITHOUT_WEIGHTS)
        and not (name in ("gamma2", "beta2") and call.pw_norm in WITHOUT_WEIGHTS)
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
    layer = _layer(call, given)
    before = _running(layer)
    assert (layer.problem() is not None) == call.called
    seen = {"dw_norm": _Seen(), "pw_norm": _Seen()}
    try:
        golden = _eager(call, given, before, torch.float64, seen)
    except ValueError as error:  # one value for a mean
        with contextlib.suppress(ValueError):
            _run_layer(call, given, layer)
            raise AssertionError(f"no error where PyTorch has one: {error}") from error
        return
    ours = _run_layer(call, given, layer)
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
    terms = _terms(call, given, golden, **seen)
    noise = dict.fromkeys(ours, 0.0)
    for step in (0, 1, -1):
        x = given.x.to(torch.promote_types(dtype, given.x.dtype)) * (1 + step * torch.finfo(dtype).eps)
        moved = dataclasses.replace(given, x=x)
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
        roundings = torch.finfo(stored).eps * size
        if "running" in name:  # var's are of squares
            rounding = torch.finfo(dtype).eps * terms[name]
            roundings += rounding if name.endswith("mean") else rounding * (rounding + 2 * size**0.5)
        else:
            roundings += torch.finfo(dtype).eps * terms[name]
        if name == "dx":  # of 16 bits it is stored twice
            roundings += 4 * torch.finfo(stored).eps * (size + float(given.dy.double().norm()))
        if name == "y - x":
            y_type = getattr(torch, call.out_dtype or call.dtype)
            roundings += torch.finfo(y_type).eps * float(given.x.double().norm() + size)
        allowed = LUCK * noise[name] + 4 * roundings + _least(stored, result)
        error = float((result.double() - right.double()).norm())
        assert error <= allowed or _near_a_kink_of(call, given, before), (
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


def _layer(call: Call, given: Given) -> uf.ULSAM:
    dtype = given.parameters["v"].dtype
    options: dict[str, Any] = {
        "eps": call.eps, "momentum": call.momentum, "backend": call.backend, "dtype": dtype, "device": device_of(call),
        "out_dtype": None if call.out_dtype is None else getattr(torch, call.out_dtype),
    }  # fmt: skip
    channels, activation = call.shape[1], "relu" if call.relu else None
    layer: uf.ULSAM
    if call.authors:
        layer = uf.upstream.ULSAM(channels, num_splits=call.num_splits, legacy_maxpool_input=call.legacy, **options)
        for subspace in layer.subspaces if activation is None else ():
            subspace.relu_dws, subspace.relu_point = nn.Identity(), nn.Identity()
    else:
        layer = uf.ULSAM(channels, call.num_splits, bias=True, activation=activation, norm="batch", **options)
        layer.legacy_maxpool_input = call.legacy
    if call.seen:
        layer.eval()(given.x)
        layer.train()
    for norm, kind, training in (
        ("dw_norm", call.dw_norm, call.dw_training), ("pw_norm", call.pw_norm, call.pw_training),
    ):  # fmt: skip
        places = _places(layer, norm)
        for module, name in places:
            replacement = NORMS[kind](getattr(module, name), call.num_splits // len(places))
            setattr(module, name, replacement.to(device_of(call), dtype).train(training))
    for name, there in LAYER_NAMES.items():
        places = _places(layer, there)
        parts = given.parameters[name].chunk(len(places)) if name in given.parameters else [None] * len(places)
        for (module, attribute), part in zip(places, parts, strict=True):
            _place(call, module, attribute, part, learns=name not in call.frozen)
    generator = torch.Generator().manual_seed(call.seed)
    for name in RUNNING:
        values = torch.randn(call.num_splits if name.startswith("pw") else channels, generator=generator)
        places = _places(layer, name)
        for (module, attribute), part in zip(places, values.chunk(len(places)), strict=True):
            if getattr(module, attribute, None) is not None:
                getattr(module, attribute).copy_(0.5 + part.abs() if name.endswith("var") else part)
    if call.tool == "deepcopy":
        return copy.deepcopy(layer)
    if call.tool == "assign":
        layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    if call.tool == "to":
        return layer.double().to(dtype)
    return pickle.loads(pickle.dumps(layer)) if call.tool == "pickle" else layer


def _places(layer: Any, name: str) -> list[tuple[nn.Module, str]]:
    """Modules and attributes that hold what the flat layer holds under this name: one, or one for each subspace."""
    inside = isinstance(layer, uf.upstream.ULSAM)
    names = KEYS | {"dw_norm": "bn_dws", "pw_norm": "bn_point"}
    owner, _, attribute = (names[name] if inside else name).rpartition(".")
    return [(part.get_submodule(owner), attribute) for part in (layer.subspaces if inside else [layer])]


def _place(call: Call, module: nn.Module, name: str, value: Tensor | None, learns: bool) -> None:
    """Make this the value of a layer's parameter, or of a frozen norm's buffer."""
    if value is None:
        if getattr(module, name, None) is not None:
            module.register_parameter(name, None)
        return
    own = getattr(module, name)
    value = value.view(own.shape)
    if name in module._buffers:
        own.copy_(value)
        return
    if call.placed == "new":
        setattr(module, name, nn.Parameter(value))
    elif call.placed == "data":
        own.data = value
    else:
        own.data.copy_(value)
    getattr(module, name).requires_grad_(learns)


def _twice(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return 2 * output


def _doubled(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return 2 * nn.BatchNorm2d.forward(norm, x)


def _with_hook(norm: nn.BatchNorm2d, groups: int) -> nn.Module:
    norm.register_forward_hook(_twice)
    return norm


def _with_forward(norm: nn.BatchNorm2d, groups: int) -> nn.Module:
    norm.forward = functools.partial(_doubled, norm)
    return norm


NORMS: dict[str, Callable[[nn.BatchNorm2d, int], nn.Module]] = {
    "batch": lambda norm, _: norm,
    "sync": lambda norm, _: nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum),
    "frozen": lambda norm, _: FrozenBatchNorm2d(norm),
    "instance": lambda norm, _: nn.InstanceNorm2d(norm.num_features, norm.eps),
    "tracking": lambda norm, _: nn.InstanceNorm2d(norm.num_features, norm.eps, norm.momentum, True, True),
    "group": lambda norm, groups: nn.GroupNorm(groups, norm.num_features, norm.eps),
    "identity": lambda norm, _: nn.Identity(),
    "no scale": lambda norm, _: nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=False),
    "hook": _with_hook,
    "forward": _with_forward,
}
"""From a norm, and the number of its subspaces, what takes its place."""


def _running(layer: uf.ULSAM) -> dict[str, Tensor]:
    """The running statistics that there are, of all subspaces behind each other."""
    found = {}
    for name in RUNNING:
        parts = [getattr(module, attribute, None) for module, attribute in _places(layer, name)]
        if parts[0] is not None:
            found[name] = torch.cat(parts)
    return found


def _run_layer(call: Call, given: Given, layer: uf.ULSAM) -> Outputs:
    leaves = {"x": given.x.detach().requires_grad_("x" not in call.frozen)}
    held = {
        name: [getattr(*place) for place in _places(layer, there)]
        for name, there in LAYER_NAMES.items()
        if name in given.parameters
    }
    leaves |= {f"{name} {k}": part for name, parts in held.items() for k, part in enumerate(parts)}
    forward: Callable[[Tensor], Tensor] = layer
    if call.tool == "functional_call":  # of a layer without values
        own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        empty = copy.deepcopy(layer)
        for t in (*empty.parameters(), *empty.buffers()):
            t.data.fill_(torch.nan if t.is_floating_point() else 99)
        forward = functools.partial(torch.func.functional_call, empty, own)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* calls its layers one by one", category=UserWarning)
        with torch.no_grad():
            attention = layer.attention(leaves["x"])
        y = _called(call, forward, leaves["x"])
    assert y.dtype == getattr(torch, call.out_dtype or call.dtype)
    like = torch.empty_like(given.x)
    if call.called:
        # PyTorch's own operators keep no other strides, and of the authors' chunks A, of one channel, has either format
        formats = (torch.contiguous_format, torch.channels_last)[: 1 if call.authors else 2]
        assert all(y.is_contiguous(memory_format=f) for f in formats if like.is_contiguous(memory_format=f))
    else:
        assert y.stride() == like.stride()
    found: Outputs = {"y - x": y.detach().double() - given.x.double(), "A": attention}
    if call.tool not in NO_GRADIENTS:
        unused = ("scale", "shift", "gamma1", "beta1") if call.legacy else ()
        assert y.requires_grad or not any(
            leaf.requires_grad for name, leaf in leaves.items() if name.split()[0] not in unused
        ), "no gradient"
        gradients = _gradients(dataclasses.replace(call, arriving="y"), given, (y,), leaves)
        if "x" in gradients:
            found["dx"] = gradients["x"]
        for name, parts in held.items():
            pieces = [gradients.get(f"{name} {k}") for k in range(len(parts))]
            if f"{name} 0" in gradients:
                whole = [torch.zeros_like(t) if g is None else g for t, g in zip(parts, pieces, strict=True)]
                found[name] = None if pieces.count(None) == len(pieces) else torch.cat([t.flatten() for t in whole])
    return found | _running(layer)


class _Step(NamedTuple):
    """What a norm did to a subspace in float64: doubling * (normed * weight + bias)."""

    mean: Tensor
    factor: Tensor
    normed: Tensor  # (t - mean) * factor
    gave: Tensor
    doubling: int
    over: tuple[int, ...]  # the dimensions whose statistics mean and factor are; empty where they are fixed


@dataclasses.dataclass
class _Seen:
    """What a norm has seen in float64."""

    constant: bool = False  # almost, so that it divides rounding noise by the root of eps
    steps: dict[int, _Step] = dataclasses.field(default_factory=dict)  # by the subspace's first channel


@dataclasses.dataclass
class _Sizes:
    """A norm of absolute values. They are of what is added up, so that nothing cancels, or of the sums (`summed`).

    Its gradients, too, add up absolute values.
    """

    seen: _Seen
    weight: Tensor | None
    bias: Tensor | None
    summed: bool
    takes: list[Tensor] = dataclasses.field(default_factory=list)  # the largest of each channel
    gives: list[Tensor] = dataclasses.field(default_factory=list)

    def apply(self, t: Tensor, channels: slice) -> Tensor:
        weight = 1.0 if self.weight is None else self.weight[channels].view(1, -1, 1, 1)
        bias = 0.0 if self.bias is None else self.bias[channels].view(1, -1, 1, 1)
        step = self.seen.steps[channels.start]
        added = t + step.mean.abs()
        self.takes.append(added.detach().amax((0, 2, 3)))
        normed = _valued(added * step.factor, step.normed.abs()) if self.summed else added * step.factor
        if step.over:  # the gradients of mean and factor
            size = step.normed.abs()
            taken = t.mean(step.over, keepdim=True) + size * (size * t).mean(step.over, keepdim=True)
            normed = _valued(normed + step.factor * taken, normed.detach())
        y = step.doubling * (normed * weight + bias)
        self.gives.append(_valued(y, step.gave.abs()) if self.summed else y)
        return self.gives[-1]


def _valued(t: Tensor, value: Tensor) -> Tensor:
    """This value, which passes its gradient to t."""
    return t - t.detach() + value


def _terms(call: Call, given: Given, golden: Outputs, dw_norm: _Seen, pw_norm: _Seen) -> dict[str, float]:
    """What is added up to give each result, in absolute values, as in `tests.helpers.golden`: the result may cancel.

    A gradient is made of products. Where one factor is counted before it cancels, the other is counted after.
    """
    x, dy = given.x.double(), given.dy.double()
    leaves = {name: t.double().abs().requires_grad_() for name, t in {"x": given.x, **given.parameters}.items()}

    def sizes(summed: bool) -> tuple[_Sizes, _Sizes]:
        norms = (
            _Sizes(dw_norm, leaves.get("gamma1"), leaves.get("beta1"), summed),
            _Sizes(pw_norm, leaves.get("gamma2"), leaves.get("beta2"), summed),
        )
        reference.batch_norm_form(
            leaves["x"], leaves["scale"], leaves.get("shift"), norms[0], leaves["v"], leaves.get("b"), norms[1],
            call.num_splits, relu_u=False, relu_z=False, pool_input=call.legacy,
        )  # fmt: skip
        return norms

    def through(norm: _Sizes, dl: Tensor) -> list[Tensor]:
        return torch.autograd.grad(torch.cat(norm.gives, dim=1), list(leaves.values()), dl, materialize_grads=True)

    z = torch.cat([step.gave for step in pw_norm.steps.values()], dim=1)
    lse = (z.relu() if call.relu else z).flatten(2).logsumexp(-1).abs()[:, :, None, None]
    (dw_added, added), (_, summed) = sizes(False), sizes(True)
    A, dl, dl_added = map_terms(golden["A"], torch.cat(added.gives, dim=1).detach(), lse, dy * x, torch.zeros_like(z))
    gradients = zip(through(added, dl.abs()), through(summed, dl_added), strict=True)
    terms = {name: a + b for name, (a, b) in zip(leaves, gradients, strict=True)}
    A_wide = A.repeat_interleave(call.group, dim=1)
    terms |= {"A": A, "y - x": A_wide * x, "dx": A_wide * dy.abs() + terms["x"]}
    terms |= {name: torch.cat((added if name.startswith("pw") else dw_added).takes) for name in RUNNING}
    return {name: float(t.norm()) for name, t in terms.items()}


class _Norm(NamedTuple):
    """What `reference.batch_norm_form` takes, of any kind."""

    kind: str  # of UNDERSTOOD or CALLED
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    training: bool
    momentum: float | None
    eps: float
    seen: _Seen | None

    def apply(self, t: Tensor, channels: slice) -> Tensor:
        weight, bias, mean, var = (p if p is None else p[channels] for p in self[1:5])
        batch = self.kind in ("instance", "group") or (self.training and self.kind not in ("frozen", "identity"))
        momentum = self.momentum
        doubling = 2 if self.kind in ("hook", "forward") else 1
        if self.kind == "identity":
            y = t
        elif self.kind == "group":
            y = F.group_norm(t, 1, weight, bias, self.eps)
        elif self.kind in ("instance", "tracking"):
            y = F.instance_norm(t, mean, var, weight, bias, batch, momentum or 0.0, self.eps)
        else:
            momentum = 1.0 if momentum is None else momentum  # of the first batch
            y = F.batch_norm(t, mean, var, weight, bias, batch, momentum, self.eps)
            y = doubling * y
        if self.seen is not None:
            over = {"instance": (2, 3), "tracking": (2, 3), "group": (1, 2, 3)}.get(self.kind, (0, 2, 3))
            spread, centre = torch.var_mean(t.detach(), over, correction=0, keepdim=True)
            self.seen.constant |= batch and bool((spread < 1e-9 * (1 + centre**2)).any())
            if self.kind == "identity":
                spread, centre = torch.ones_like(spread) - self.eps, torch.zeros_like(centre)
            elif not batch:
                spread, centre = (statistic.view(1, -1, 1, 1) for statistic in (var, mean))
            factor = (spread + self.eps).rsqrt()
            normed = (t.detach() - centre) * factor
            self.seen.steps[channels.start] = _Step(centre, factor, normed, y.detach(), doubling, over if batch else ())
        return y


def _eager(
    call: Call, given: Given, running: dict[str, Tensor], dtype: torch.dtype, seen: dict[str, _Seen] | None = None
) -> Outputs:
    """The same by the reference in one type; what its norms see is added to `seen`."""
    leaves = {"x": given.x.detach().to(dtype)}
    # contiguous: PyTorch's batch_norm of a channels_last input has the wrong gradient where its weight has gaps
    leaves |= {name: p.detach().to(dtype).contiguous() for name, p in given.parameters.items()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    running = {name: t.to(dtype, copy=True) for name, t in running.items()}

    def norm(kind: str, gamma: str, beta: str, name: str, training: bool) -> Any:
        mean, var = (running.get(f"{name}.running_{statistic}") for statistic in ("mean", "var"))
        watched = None if seen is None else seen[name]
        return _Norm(kind, leaves.get(gamma), leaves.get(beta), mean, var, training, call.momentum, call.eps, watched)

    y, A = reference.batch_norm_form(
        leaves["x"], leaves["scale"], leaves.get("shift"),
        norm(call.dw_norm, "gamma1", "beta1", "dw_norm", call.dw_training), leaves["v"], leaves.get("b"),
        norm(call.pw_norm, "gamma2", "beta2", "pw_norm", call.pw_training), call.num_splits, relu_u=call.relu,
        relu_z=call.relu, pool_input=call.legacy,
    )  # fmt: skip
    found: Outputs = {"y - x": y.detach().double() - leaves["x"].detach().double(), "A": A.detach()}
    gradients = torch.autograd.grad(y, list(leaves.values()), given.dy.to(dtype), allow_unused=True)
    found |= {"dx" if name == "x" else name: t for name, t in zip(leaves, gradients, strict=True)}
    return found | running


def _near_a_kink_of(call: Call, given: Given, running: dict[str, Tensor]) -> bool:
    """As `_near_a_kink`, of a layer: moving x by a few roundings moves a gradient by more than it should."""
    eps = torch.finfo(torch.promote_types(given.x.dtype, torch.float32)).eps
    dx = []
    for step in (-64, -16, -4, 0, 4, 16, 64):
        moved = dataclasses.replace(given, x=given.x.double() * (1 + step * eps))
        dx.append(_eager(call, moved, running, torch.float64)["dx"])
    apart = [float((b - a).norm()) for a, b in itertools.pairwise(dx)]
    return max(apart) > 1e4 * eps * float(dx[3].norm())
