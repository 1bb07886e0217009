"""Which way a call takes. It is decided once, at the top of the call, and handed down; `uf.explain` prints it.

way         reference   the formula in eager PyTorch, which transforms see through
            plain       the same in as few steps as can be, which exporters see through
            operator    the registered operator: compilation, export, a dispatch mode or a tensor subclass looks on
            direct      the backend itself, past the dispatcher
dw_norm,    None        there is no norm after this convolution
pw_norm     fixed       running statistics: the norm is an affine map and folds into the convolution
            batch       the statistics of this batch
folded      both norms are fixed and the backend folds them inside its own launch; else PyTorch folds them before it
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from ..backends import BACKENDS
from . import tracing
from .tracing import Way

Statistics = Literal["fixed", "batch"]


class Route(NamedTuple):
    way: Way
    backend: str  # the name asked for, or "auto"
    dw_norm: Statistics | None = None
    pw_norm: Statistics | None = None
    folded: bool = False


_ROUTES = {
    fields: Route(*fields)
    for fields in itertools.product(
        get_args(Way), BACKENDS, (None, "fixed", "batch"), (None, "fixed", "batch"), (False, True)
    )
}
"""All there are, made once: making one takes a third of a microsecond."""


def general_route(tensors: Sequence[Tensor | None], backend: str, accepted: bool = False) -> Route:
    """Of `subspace_attention`; backend as `backends.requested` gives it, the rest as `tracing.way_of` takes it."""
    way: Way = "reference" if backend == "reference" else tracing.way_of(tensors, accepted)
    return _ROUTES[way, backend, None, None, False]


def norm_route(
    tensors: Sequence[Tensor | None],  # x first
    backend: str,
    *,
    dw_batch: bool,  # by BatchNorm's rule this norm takes the statistics of the batch
    pw_batch: bool,
    pool_input: bool,  # u changes nothing but dw_norm's statistics
    shared: bool,  # several processes share the batch
    gradients: bool,  # a gradient may be asked for
    accepted: bool = False,  # as `tracing.way_of` takes it
    way: Way | None = None,  # of these tensors, where it is known
) -> Route:
    """Of the form with norms. Only a backend itself talks to other processes, so a shared batch goes there directly."""
    x = tensors[0]
    assert x is not None
    if way is None or backend == "reference":
        way = general_route(tensors, backend, accepted).way
    if way == "plain" and (dw_batch or pw_batch):  # exporters know torch.nn.functional.batch_norm
        way = "reference"
    if shared:
        if backend == "reference":
            raise RuntimeError('backend "reference" cannot share the statistics of a batch between processes')
        if tracing.transformed():
            raise RuntimeError(
                "statistics of a batch that processes share have no transforms and no forward derivatives"
            )
        way = "operator" if tracing.needs_op(tensors, accepted) else "direct"
    if way != "reference":
        if x.shape[0] == 0 and not shared:  # no statistics: nothing is updated, and every gradient is 0
            dw_batch = pw_batch = False
        dw_batch = dw_batch and not pool_input
    fixed = not dw_batch and not pw_batch
    if shared and not fixed:
        way = "direct"
    folded = fixed and way == "direct" and not gradients
    return _ROUTES[way, backend, "batch" if dw_batch else "fixed", "batch" if pw_batch else "fixed", folded]


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether one of these does. Where `torch.is_grad_enabled()`, a gradient may then be asked for."""
    for t in tensors:  # noqa: SIM110  a generator takes a microsecond
        if t is not None and t.requires_grad:
            return True
    return False
