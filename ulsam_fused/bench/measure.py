"""Measures the providers at one workload: first whether each is right, then the times of those that are."""

import torch
from torch import nn

from ..console.errors import one_line
from ..console.output import note
from . import calls, timing
from .directions import DIRECTIONS
from .module_accuracy import Expected
from .providers import Provider, Sources
from .rows import Measured, OnGpu, Row, row
from .workload import Workload


def rows_of(workload: Workload, providers: list[Provider], seconds: float) -> list[Row]:
    """One row for the ceiling and one for each provider; `seconds` are for each time that is taken."""
    torch.manual_seed(1)
    ((x, dy),) = calls.inputs(workload, 1)
    if any(provider.compiled for provider in providers):
        torch.compiler.reset()  # else torch.compile makes the last size's code dynamic, and uses it again
    sources = Sources.make(x, workload.num_splits, training=workload.training)
    modules: dict[str, nn.Module] = {}
    errors: dict[str, str] = {}
    expected: dict[str, Expected] = {}  # by form
    for provider in providers:
        note(f"{workload} {provider.name}: comparing with float64")
        try:
            if provider.form not in expected:
                source = sources.paper if provider.form == "paper" else sources.upstream
                expected[provider.form] = Expected.of(source, x, dy)
            module = provider.build(sources)
            problem = expected[provider.form].problem_with(module, provider.compiled)
        except Exception as error:  # whatever goes wrong goes into the provider's row; the others go on
            problem = f"failed: {one_line(error)}"
        if problem is None:
            modules[provider.name] = module
        else:
            errors[provider.name] = problem
            note(f"{workload} {provider.name}: {problem}")
    del expected
    measured = measure(workload, modules, seconds)
    of_providers = [row(workload, provider, measured, errors.get(provider.name)) for provider in providers]
    return [row(workload, None, measured, None), *of_providers]


def measure(workload: Workload, modules: dict[str, nn.Module], seconds: float) -> Measured:
    """Times of the modules and of the ceiling; on a GPU also host time and memory."""
    sets = timing.sets_needed(workload.floor, workload.device)
    inputs = calls.inputs(workload, sets)
    name_of_ceiling = DIRECTIONS[workload.direction].ceiling
    ceiling = calls.ceiling(inputs, workload.direction)
    if workload.device.type == "cpu":
        timed = {name: calls.call(module, inputs, workload.direction) for name, module in modules.items()}
        note(f"{workload}: timing {len(timed)} providers in turn")
        return Measured(timing.wall_clock({name_of_ceiling: ceiling, **timed}, seconds), {})
    ceilings = [timing.device_time(ceiling, sets, seconds / 2)]
    measured = Measured({}, {})
    one_image = calls.inputs(workload, 1, batch=1)
    for name, module in modules.items():
        note(f"{workload} {name}: timing")
        call = calls.call(module, inputs, workload.direction)
        measured.timings[name] = timing.device_time(call, sets, seconds)
        host_us = timing.host_time(calls.call(module, one_image, workload.direction), seconds)
        measured.on_gpu[name] = OnGpu(host_us, timing.peak_memory(call))
    ceilings.append(timing.device_time(ceiling, sets, seconds / 2))
    measured.timings[name_of_ceiling] = min(ceilings, key=lambda found: found.p50)
    return measured
