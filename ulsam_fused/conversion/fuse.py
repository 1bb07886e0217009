"""Replace ordinary layers by fused ones inside a model, and back.

pattern.py recognises a candidate, blockers.py looks for what a replacement would lose, build.py makes the replacement,
and equivalence.py runs copies of both. A module that is refused is left exactly as it is.
"""

import copy
import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from . import blockers, build, pattern
from .build import Plan
from .equivalence import TOLERANCE, Comparison
from .pattern import Names


@dataclass
class Report:
    """What a conversion did. Names are those of `model.named_modules()`; "" is the model itself.

    Attributes:
        replaced: (name, what it became). A module that is used in several places has an entry for each of its names.
        refused: (name, reason).
    """

    replaced: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{_shown(name)}: replaced by {text}" for name, text in self.replaced]
        lines += [f"{_shown(name)}: refused, {reason}" for name, reason in self.refused]
        return "\n".join(lines) or "no ULSAM found, nothing replaced"


class _Fuse:
    """Replace every ULSAM of ordinary layers inside a model by a fused one.

    It recognises layers, not names: whole modules of several subspaces become `upstream.ULSAM`, single subspaces
    `upstream.SubSpace`, and modules whose subspaces share one set of weights `shared_weights.SharedULSAM`. Each
    candidate runs beside its replacement in float64, on a copy with random weights. Only this tells the authors' code
    before October 2020 from the later one: it pools x itself, with the same layers. A module is refused if it only
    resembles a ULSAM, or if a replacement would change something: see `last_report`.

    The replacement takes the layers themselves, with their parameters, buffers, modes and gradients; a module used in
    several places stays one module. So an optimizer may be made before or after. Fuse before you wrap or compile the
    model. The state dict of a replacement has the authors' names; load checkpoints that have other names before fusing.
    The paper's form, without BatchNorm, is refused: use `ulsam_fused.ULSAM`.

    Args:
        model: any module.
        inplace: change the model itself; False changes a copy.

    Returns:
        The model or the copy; if that is a ULSAM itself, its replacement.

    Raises:
        TypeError: model is no torch.nn.Module.
    """

    last_report = Report()
    """The `Report` of the last call; `print` shows it line by line."""

    def __call__(self, model: nn.Module, *, inplace: bool = True) -> nn.Module:
        model = _prepared(model, inplace)
        search = _Search(model)
        search.visit("", model)
        self.last_report = search.report
        return _replace(model, search.new)


class _Unfuse:
    """Replace every fused layer inside a model by ordinary PyTorch layers, for tools that must see those.

    They become the modules of `ulsam_fused.reference`, with the authors' names; a `SharedULSAM` becomes a
    `PlainSharedULSAM` of `conversion.shared_weights`. An `upstream.ULSAM` gives its layers themselves, so parameters
    stay the same objects. A `ulsam_fused.ULSAM` is cut into subspaces with new parameters; kept are values, modes,
    dtype, device and requires_grad. The option backend is dropped.

    Args:
        model: any module.
        inplace: change the model itself; False changes a copy.

    Returns:
        The model or the copy; if that is a fused layer itself, its replacement.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: a layer has an out_dtype, hooks or a class derived from ours, which ordinary layers cannot express,
            or a norm that cannot be cut into subspaces. Nothing is changed then.
    """

    last_report = Report()
    """The `Report` of the last call that did not raise."""

    def __call__(self, model: nn.Module, *, inplace: bool = True) -> nn.Module:
        model = _prepared(model, inplace)
        report, new = Report(), {}
        for name, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, build.FUSED):
                reason = blockers.against_unfusing(module)
                if reason is not None:
                    raise ValueError(f"{_shown(name)} cannot become ordinary layers: {reason}")
                if id(module) not in new:
                    new[id(module)] = build.plain(module)
                report.replaced.append((name, _described(new[id(module)])))
        self.last_report = report
        return _replace(model, new)


fuse = _Fuse()
unfuse = _Unfuse()


class _Found(NamedTuple):
    """What a module turned out to be."""

    plan: Plan | None = None  # how to replace it
    reason: str = ""  # why not to replace it; neither plan nor reason: it has nothing to do with ULSAM
    whole: bool = True  # the reason also holds for everything inside the module


class _Search:
    """Goes through a model and collects replacements. It changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.report = Report()
        self.new: dict[int, nn.Module] = {}  # by the id of the module that it replaces
        self._surroundings = blockers.Surroundings(model)
        self._visited: dict[int, bool] = {}

    def visit(self, name: str, module: nn.Module) -> bool:
        """Whether the module or anything inside it is a fused layer, or is replaced or refused now."""
        if id(module) not in self._visited:
            self._visited[id(module)] = self._visit(name, module)
        return self._visited[id(module)]

    def _visit(self, name: str, module: nn.Module) -> bool:
        if isinstance(module, build.FUSED):
            return True
        found = self._examine(module)
        if found.plan is not None:
            self.new[id(module)] = new = found.plan.build(module)
            note = "; its state dict has other names now" if found.plan.renames else ""
            self.report.replaced += [(n, _described(new) + note) for n in self._surroundings.names(module)]
            return True
        if not found.whole or not found.reason:
            children = [(f"{name}.{i}".lstrip("."), child) for i, child in module._modules.items() if child is not None]
            inside = [self.visit(child_name, child) for child_name, child in children]
            if any(inside) or not found.reason:
                return any(inside)
        self.report.refused += [(n, found.reason) for n in self._surroundings.names(module)]
        return True

    def _examine(self, module: nn.Module) -> _Found:
        parts = pattern.parts(module) or {}
        if not parts and not pattern.resembles_subspace(module):
            return _Found(reason=_promise(module), whole=False)
        subspaces = parts or {"": module}
        for name, subspace in subspaces.items():
            reason = pattern.why_no_subspace(subspace)
            if reason is not None:
                return _Found(reason=f"{name}: {reason}".lstrip(": "))
        ways = pattern.assignments(next(iter(subspaces.values())))
        layers = [pattern.layers_at(subspace, ways[0]) for subspace in subspaces.values()]
        reason = self._surroundings.against(module, layers)
        if reason is not None:
            return _Found(reason=reason)
        splits = [len(parts)] if parts else [*pattern.possible_splits(module), 1]
        return _equivalent(module, tuple(subspaces), ways, splits, group=layers[0].dw.in_channels)


def _equivalent(module: nn.Module, parts: tuple[str, ...], ways: list[Names], splits: list[int], group: int) -> _Found:
    """The first plan that does what the module does.

    Args:
        parts, ways, splits: the plans' `parts`, and what their `names` and their `num_splits` may be.
        group: channels of a subspace.
    """
    reason, runs = "", False
    for g in splits:
        try:
            comparison = Comparison(module, g * group)
        except Exception as error:
            reason = reason or f"running it raised {type(error).__name__}: {error}"
            continue
        errors = []
        for names, activation, legacy in itertools.product(ways, ("relu", None), (False, True)):
            plan = Plan(parts, names, g, activation, legacy)
            errors.append(comparison.error(plan.build))
            if errors[-1] < TOLERANCE:
                return _Found(plan)
        runs = True
        reason = f"it computes something else than the authors' code, present or past: off by {min(errors):.0%}"
    # a module that only holds subspaces, say one after the other, does not run on the channels of all of them at once
    return _Found(reason=reason, whole=runs and len(parts) > 1)


def _promise(module: nn.Module) -> str:
    """A reason to refuse a module that is called ULSAM and has none of its layers; empty for all others."""
    name = type(module).__name__
    promises = name.lower().startswith("ulsam") or name.lower() == "subspace"
    return f"it is called {name} and is not built as the authors' code is" if promises else ""


def _prepared(model: object, inplace: bool) -> nn.Module:
    """The model or a copy of it, which keeps the process groups themselves."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if inplace:
        return model
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    return copy.deepcopy(model, {id(group): group for group in groups if group is not None})


def _replace(model: nn.Module, new: dict[int, nn.Module]) -> nn.Module:
    """Put the new modules, by the ids of the old ones, into the model; returns it, or what replaces it."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(model), model)


def _described(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__.removeprefix('ulsam_fused.')}.{kind.__name__}({module.extra_repr()})"


def _shown(name: str) -> str:
    return name or "the model itself"
