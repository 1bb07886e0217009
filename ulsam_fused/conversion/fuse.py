"""Replacing ordinary layers by fused ones inside a model, and back.

A candidate is found by its structure, checked for everything that a replacement would lose, and proven by running a
copy of it. What is refused is left exactly as it is.
"""

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from . import blockers as obstacles
from . import build as replacements
from . import pattern as structure
from .build import Plan
from .equivalence import TOLERANCE, Proof

_FORMS = (("relu", False), ("relu", True), (None, False), (None, True))  # activation, legacy


@dataclass
class Report:
    """What a conversion did; names are as `model.named_modules()` has them, "" being the model itself.

    Attributes:
        replaced: (name, what it became); a module used in several places is there under each of its names.
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

    Found by structure, not by name: whole modules of several subspaces (they become `upstream.ULSAM`), subspaces alone
    (`upstream.SubSpace`), and modules whose subspaces share one set of weights (`shared.SharedULSAM`). Each candidate
    is run beside its replacement in float64, on a copy with random weights; the form that pools x itself, of the
    authors' code before October 2020, has the same layers and is told apart so. What resembles a ULSAM and is none, or
    what a replacement would change, is refused: see `last_report`.

    Weights, buffers, training flags (each norm's own), dtype, device and requires_grad are kept, and a module used in
    several places stays one module. The parameters are new ones without gradients (all but a shared ULSAM's, which are
    kept): fuse before an optimizer is built and before a model is wrapped or compiled. The state dict of a
    replacement has the authors' names; load checkpoints that have other names before fusing. The paper's form, without
    BatchNorm, is refused: use `ulsam_fused.ULSAM`.

    Args:
        model: any module.
        inplace: change the model; else a copy, and the model stays as it is.

    Returns:
        The model or the copy; where that is a ULSAM itself, its replacement.

    Raises:
        TypeError: model is no torch.nn.Module.
    """

    last_report = Report()
    """Of the last call; `print` shows it line by line."""

    def __call__(self, model: nn.Module, *, inplace: bool = True) -> nn.Module:
        model = _prepared(model, inplace)
        search = _Search(model)
        search.visit("", model)
        self.last_report = search.report
        return _replace(model, search.new)


class _Unfuse:
    """Replace every fused layer inside a model by ordinary PyTorch layers, for tools that must see those.

    They become the modules of `ulsam_fused.reference`, with the authors' names; a `shared.SharedULSAM` becomes a
    `shared.PlainSharedULSAM`. Weights, buffers, training flags, dtype, device and requires_grad are kept; the option
    backend has no meaning there. The parameters are new ones, as with `fuse`.

    Args:
        model: any module.
        inplace: change the model; else a copy, and the model stays as it is.

    Returns:
        The model or the copy; where that is a fused layer itself, its replacement.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: a layer cannot be expressed so: it has an out_dtype, hooks or a class derived from ours. Nothing is
            changed then.
    """

    last_report = Report()
    """Of the last call that did not raise."""

    def __call__(self, model: nn.Module, *, inplace: bool = True) -> nn.Module:
        model = _prepared(model, inplace)
        report, new = Report(), {}
        for name, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, replacements.FUSED):
                reason = obstacles.against_unfusing(module)
                if reason is not None:
                    raise ValueError(f"{_shown(name)} cannot become ordinary layers: {reason}")
                if id(module) not in new:
                    new[id(module)] = replacements.plain(module)
                report.replaced.append((name, _described(new[id(module)])))
        self.last_report = report
        return _replace(model, new)


fuse = _Fuse()
unfuse = _Unfuse()


class _Found(NamedTuple):
    """What a module is: a plan to replace it, or a reason against it, or neither."""

    plan: Plan | None = None
    reason: str = ""
    whole: bool = True  # the reason holds for whatever is inside, too


class _Search:
    """Goes through a model and collects replacements; changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.report = Report()
        self.new: dict[int, nn.Module] = {}  # id of a module -> its replacement
        self._surroundings = obstacles.Surroundings(model)
        self._visited: dict[int, bool] = {}

    def visit(self, name: str, module: nn.Module) -> bool:
        """Whether the module or anything inside is fused, or is in the report."""
        if id(module) not in self._visited:
            self._visited[id(module)] = self._visit(name, module)
        return self._visited[id(module)]

    def _visit(self, name: str, module: nn.Module) -> bool:
        if isinstance(module, replacements.FUSED):
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
        parts = structure.parts(module) or {}
        if not parts and not structure.resembles_subspace(module):
            return _Found(reason=_promise(module), whole=False)
        for name, part in parts.items() or [("", module)]:
            reason = structure.why_no_subspace(part)
            if reason is not None:
                return _Found(reason=f"{name}: {reason}".lstrip(": "))
        ways = structure.assignments(next(iter(parts.values()), module))
        splits = [len(parts)] if parts else [*structure.possible_splits(module), 1]
        plans = [[Plan(tuple(parts) or ("",), names, g, *form) for names in ways for form in _FORMS] for g in splits]
        reason = self._surroundings.against(module, plans[0][0].layers(module))
        return _Found(reason=reason) if reason else self._proven(module, plans)

    def _proven(self, module: nn.Module, plans: list[list[Plan]]) -> _Found:
        """The first plan that does what the module does; a list of plans is for one number of channels."""
        reason, runs = "", False
        for alternatives in plans:
            first = alternatives[0]
            try:
                proof = Proof(module, first.num_splits * first.layers(module)[0].dw.in_channels)
            except Exception as error:
                reason = reason or f"running it raised {type(error).__name__}: {error}"
                continue
            errors = []
            for plan in alternatives:
                errors.append(proof.error(plan.build))
                if errors[-1] < TOLERANCE:
                    return _Found(plan)
            runs = True
            reason = f"it computes something else than the authors' code, present or past: off by {min(errors):.0%}"
        # what is no ULSAM but holds subspaces, say one after the other, does not run on all their channels at once
        return _Found(reason=reason, whole=runs and len(plans[0][0].parts) > 1)


def _promise(module: nn.Module) -> str:
    """A reason to report a module that is called ULSAM and has nothing of it."""
    name = type(module).__name__
    promises = name.lower().startswith("ulsam") or name.lower() == "subspace"
    return f"it is called {name} and is not built as the authors' code is" if promises else ""


def _prepared(model: object, inplace: bool) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if inplace:
        return model
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    return copy.deepcopy(model, {id(group): group for group in groups if group is not None})


def _replace(model: nn.Module, new: dict[int, nn.Module]) -> nn.Module:
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
