"""What a replacement would silently lose or change: hooks, shared weights, settings that differ between subspaces."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import modules, upstream
from ..ops import checks
from ..ops.module_tensors import described, is_frozen_norm
from .pattern import Layers
from .shared_weights import SharedULSAM

_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PER_CHANNEL = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d)
_SETTINGS = ("eps", "momentum", "track_running_stats", "training", "process_group")


class Surroundings:
    """How the rest of a model depends on a candidate inside it."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), []).append(name)
        self._tensors: dict[int, list[str]] = {}
        for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, t in tensors:
                self._tensors.setdefault(id(t), []).append(name)
        self._wrapped = {
            id(inner)
            for module in model.modules()
            if isinstance(module, DistributedDataParallel)
            for inner in module.modules()
        }
        self._held = [(id(held), module, key) for module in model.modules() for held, key in _held_otherwise(module)]

    def names(self, module: nn.Module) -> list[str]:
        """All names of a module of the model."""
        return self._names[id(module)]

    def against(self, module: nn.Module, subspaces: list[Layers]) -> str | None:
        """A reason not to replace the module, which has these subspaces; None if there is none."""
        if id(module) in self._wrapped:
            return "it is inside DistributedDataParallel: fuse before wrapping"
        return (
            _hooks(module, (*_CALL_HOOKS, *_STATE_HOOKS))
            or self._used_elsewhere(module)
            or _tensors(subspaces)
            or _disagreement(subspaces)
        )

    def _used_elsewhere(self, module: nn.Module) -> str | None:
        """A part of the module that something outside it holds, too; None if there is none."""
        inner = {id(m): name for name, m in module.named_modules()}
        for held, holder, key in self._held:
            if held in inner and id(holder) not in inner:
                what = inner[held] or "it"
                return f"{what} is also held in the attribute {key} of {type(holder).__name__}, which is no submodule"
        names = self.names(module)
        prefixes = tuple(f"{name}." if name else "" for name in names)
        for t in (*module.parameters(), *module.buffers()):
            own = self._tensors[id(t)]
            if len(own) > len(names):
                others = [name for name in own if not name.startswith(prefixes)] or own
                return f"it shares a weight with another layer: {', '.join(others)}"
        return None


def against_unfusing(layer: nn.Module) -> str | None:
    """A reason not to replace a fused layer by ordinary ones; None if there is none."""
    if type(layer) not in (modules.ULSAM, upstream.ULSAM, upstream.SubSpace, SharedULSAM):
        return f"its class {type(layer).__name__} is derived from ours"
    out_dtype = getattr(layer, "out_dtype", None)
    if out_dtype is not None:
        return f"it has out_dtype={out_dtype}, which no ordinary layer has"
    if isinstance(layer, modules.ULSAM) and not isinstance(layer, upstream.ULSAM | upstream.SubSpace):
        for name in ("dw_norm", "pw_norm"):
            norm = layer._modules.get(name)
            if not (norm is None or isinstance(norm, _PER_CHANNEL) or is_frozen_norm(norm)):
                return f"its {name} is {described(norm)}, of which a subspace cannot have a part"
    return _hooks(layer, _CALL_HOOKS)


def _hooks(module: nn.Module, kinds: tuple[str, ...]) -> str | None:
    """A hook of one of these kinds on the module, on anything inside it, or on a parameter; None if there is none."""
    for name, inner in module.named_modules():
        for kind in kinds:
            if getattr(inner, kind, None):
                return f"{name or 'it'} has {kind.strip('_').replace('_', ' ')}"
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"{name} has a hook"
    return None


def _held_otherwise(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules in plain attributes, lists and dictionaries, with the attribute's name: they cannot be replaced there."""
    for key, value in vars(module).items():
        if key == "_modules":
            continue
        if isinstance(value, dict):
            value = tuple(value.values())
        for held in value if isinstance(value, list | tuple) else (value,):
            if isinstance(held, nn.Module):
                yield held, key


def _tensors(subspaces: list[Layers]) -> str | None:
    """A problem with the classes, types or devices of the tensors; None if there is none."""
    devices: set[torch.device] = set()
    convolutions: set[torch.dtype] = set()
    norms: set[torch.dtype] = set()
    for layers in subspaces:
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if type(parameter) is not nn.Parameter:
                    return f"{name} is a {type(parameter).__name__}, not a plain torch.nn.Parameter"
                devices.add(parameter.device)
                (convolutions if isinstance(layer, nn.Conv2d) else norms).add(parameter.dtype)
    if any(device.type == "meta" for device in devices):
        return "its weights are on the meta device and have no values"
    if len(devices) > 1:
        return f"its weights are on several devices: {', '.join(sorted(map(str, devices)))}"
    if len(convolutions) > 1 or not convolutions <= set(checks.FLOATS):
        return f"its convolutions' types are {', '.join(sorted(map(str, convolutions)))}: one of four floats is needed"
    allowed = convolutions | ({torch.float32} if convolutions & set(checks.HALVES) else set())
    if len(norms) > 1 or not norms <= allowed:
        types = ", ".join(sorted(map(str, norms)))
        return f"its BatchNorms' types are {types} beside {convolutions.pop()} convolutions"
    return None


def _disagreement(subspaces: list[Layers]) -> str | None:
    """A setting that differs between the subspaces, while a fused layer has it only once; None if there is none."""
    first = subspaces[0]
    if type(first.dw_norm) is not type(first.pw_norm):
        return "only one of its BatchNorms is a SyncBatchNorm"
    for kind in Layers._fields:
        described = [_described(getattr(layers, kind)) for layers in subspaces]
        for key, value in described[0].items():
            if any(other[key] != value for other in described):
                values = ", ".join(str(other[key]) for other in described)
                return f"its subspaces' {kind} differ in {key}: {values}"
    return None


def _described(layer: nn.Module) -> dict[str, object]:
    """The settings of a layer that a fused layer has only once for all subspaces."""
    found: dict[str, object] = {"type": type(layer).__name__}
    for name in ("weight", "bias"):
        parameter = getattr(layer, name)
        found[name] = "absent" if parameter is None else "present"
    if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
        found |= {key: getattr(layer, key, None) for key in _SETTINGS}
        count = layer.num_batches_tracked
        found["running_mean"] = "absent" if layer.running_mean is None else "present"
        if layer.momentum is None:  # then a batch weighs 1 / count
            found["num_batches_tracked"] = count if count is None or count.is_meta else int(count)
    return found
