"""Makes the layer of a `Call`, with the norms and parameters that it names, and runs it."""

import copy
import dataclasses
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.fuzz.calls import Call
from tests.fuzz.tensors import NO_GRADIENTS, Given, Outputs, called, device_of, gradients_of
from tests.helpers.authors import FrozenBatchNorm2d
from ulsam_fused.state_dict import KEYS

LAYER_NAMES = {
    "scale": "dw_weight", "shift": "dw_bias", "v": "pw_weight", "b": "pw_bias", "gamma1": "dw_norm.weight",
    "beta1": "dw_norm.bias", "gamma2": "pw_norm.weight", "beta2": "pw_norm.bias",
}  # fmt: skip
RUNNING = [f"{norm}.{name}" for norm in ("dw_norm", "pw_norm") for name in ("running_mean", "running_var")]


def layer_of(call: Call, given: Given) -> uf.ULSAM:
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


def running_of(layer: uf.ULSAM) -> dict[str, Tensor]:
    """The running statistics that there are, of all subspaces behind each other."""
    found = {}
    for name in RUNNING:
        parts = [getattr(module, attribute, None) for module, attribute in _places(layer, name)]
        if parts[0] is not None:
            found[name] = torch.cat(parts)
    return found


def run_layer(call: Call, given: Given, layer: uf.ULSAM) -> Outputs:
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
        y = called(call, forward, leaves["x"])
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
        gradients = gradients_of(dataclasses.replace(call, arriving="y"), given, (y,), leaves)
        if "x" in gradients:
            found["dx"] = gradients["x"]
        for name, parts in held.items():
            pieces = [gradients.get(f"{name} {k}") for k in range(len(parts))]
            if f"{name} 0" in gradients:
                whole = [torch.zeros_like(t) if g is None else g for t, g in zip(parts, pieces, strict=True)]
                found[name] = None if pieces.count(None) == len(pieces) else torch.cat([t.flatten() for t in whole])
    return found | running_of(layer)
