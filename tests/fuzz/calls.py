"""A call of the function or of a layer as a plain value: hypothesis draws and shrinks it, a line of JSON keeps it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.helpers import layouts

EXAMPLES = Path(__file__).parent / "examples.jsonl"
"""Calls that once failed; `make test` runs them again."""

LAYOUTS = {f.__name__: f for f in (layouts.channels_last, *layouts.STRIDED)}
HALVES = ("float16", "bfloat16")
UNDERSTOOD = ("batch", "sync", "frozen")
"""Norms that the operator stands for: BatchNorm2d, SyncBatchNorm, FrozenBatchNorm2d."""
CALLED = ("instance", "tracking", "group", "identity", "no scale", "hook", "forward")
"""Norms that are called: InstanceNorm2d, the same with weights and running statistics, GroupNorm of one group for each
subspace, Identity, BatchNorm2d without weights, with a hook, with a forward of its own."""
WITHOUT_WEIGHTS = ("instance", "identity", "no scale")
PARAMETERS = ("scale", "shift", "v", "b", "gamma1", "beta1", "gamma2", "beta2")


FORMS = ("function", "layer", "legacy", "authors", "authors, legacy")
"""subspace_attention; ULSAM(norm="batch"), and pooling x itself; the same two of upstream.ULSAM."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What is not there in a form is not read: `shift` in a call of the function is dw_bias in a layer."""

    form: str = "function"  # or of FORMS
    backend: str = "torch"
    seed: int = 0
    n: int = 1
    group: int = 1
    num_splits: int = 1
    h: int = 2
    w: int = 2
    dtype: str = "float64"
    wide_parameters: bool = False  # float32 beside a 16-bit x
    out_dtype: str | None = None
    relu: bool = False
    shift: bool = False
    b: bool = False
    gain: float = 1.0  # of v: the larger, the more peaked the maps
    signs: str = "mixed"  # of scale: "mixed", "negative", "zero"
    special: str = ""  # values of x: "ties", "nan", "inf", "-inf", "denormal", "zeros"
    layout_x: str = "contiguous"
    layout_dy: str = "contiguous"
    strided_parameters: bool = False
    negative_bit: tuple[str, ...] = ()  # of "x", "dy", "parameters": a view whose value is minus its memory
    arriving: str = "both"  # at which results gradients arrive: "y", "A", "both"
    frozen: tuple[str, ...] = ()  # of "x" and PARAMETERS: need no gradient
    placed: str = "new"  # parameters of a layer: "new" ones, or other "data", or "copied" into its own
    seen: bool = False  # a layer is called once before anything in it is replaced
    dw_norm: str = "batch"  # of a layer; of UNDERSTOOD or CALLED
    pw_norm: str = "batch"
    dw_training: bool = True
    pw_training: bool = True
    eps: float = 1e-5
    momentum: float | None = 0.9
    tool: str = ""  # of TOOLS: what wraps, copies or transforms

    @property
    def size(self) -> tuple[int, int]:
        """The smaller, the easier to look at."""
        unusual = sum(value != usual for value, usual in zip(*map(dataclasses.astuple, (self, Call())), strict=True))
        return unusual, math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n, self.group * self.num_splits, self.h, self.w

    @property
    def authors(self) -> bool:
        return self.form.startswith("authors")

    @property
    def legacy(self) -> bool:
        return self.form.endswith("legacy")

    @property
    def called(self) -> bool:
        """Whether a layer has to call its norms."""
        return self.form != "function" and (self.dw_norm in CALLED or self.pw_norm in CALLED)


TINY = {"n": st.integers(1, 2), "group": st.integers(1, 4), "num_splits": st.integers(1, 2), "h": st.integers(1, 6)}
TINY |= {"w": st.integers(1, 6)}
"""Limits for Triton's interpreter."""

QUICK_TOOLS = (
    "", "", "", "checkpoint", "autocast", "no_grad", "inference_mode", "deepcopy", "pickle", "functional_call", "dual",
    "to", "assign",
)  # fmt: skip
TOOLS = (*QUICK_TOOLS * 4, "compile")


def calls(backend: str, **limits: Any) -> st.SearchStrategy[Call]:
    """Calls that are allowed; limits: a strategy in place of that of a field."""
    subset = st.lists(st.sampled_from(("x", *PARAMETERS)), unique=True, max_size=6).map(sorted).map(tuple)
    negative = st.lists(st.sampled_from(("x", "dy", "parameters")), unique=True).map(sorted).map(tuple)
    norms = st.sampled_from((*UNDERSTOOD, *["batch"] * len(CALLED), *CALLED))
    fields: dict[str, Any] = {
        "form": st.sampled_from(FORMS),
        "seed": st.integers(0, 2**16),
        "n": st.integers(1, 3),
        "group": st.integers(1, 9),
        "num_splits": st.integers(1, 4),
        "h": st.integers(1, 10),
        "w": st.integers(1, 18),
        "dtype": st.sampled_from(("float64", "float32", *HALVES)),
        "wide_parameters": st.booleans(),
        "out_dtype": st.sampled_from((None, None, "float64", "float32", *HALVES)),
        "relu": st.booleans(),
        "shift": st.booleans(),
        "b": st.booleans(),
        "gain": st.sampled_from((0.5, 2.0, 10.0)),
        "signs": st.sampled_from(("mixed", "mixed", "negative", "zero")),
        "special": st.sampled_from(("", "", "", "ties", "nan", "inf", "-inf", "denormal", "zeros")),
        "layout_x": st.sampled_from(("contiguous", *LAYOUTS)),
        "layout_dy": st.sampled_from(("contiguous", *LAYOUTS)),
        "strided_parameters": st.booleans(),
        "negative_bit": negative,
        "arriving": st.sampled_from(("y", "A", "both")),
        "frozen": subset,
        "placed": st.sampled_from(("new", "data", "copied")),
        "seen": st.booleans(),
        "dw_norm": norms,
        "pw_norm": norms,
        "dw_training": st.booleans(),
        "pw_training": st.booleans(),
        "eps": st.sampled_from((1e-5, 0.1)),
        "momentum": st.sampled_from((0.9, 0.1, 0.0, 1.0, None)),
        "tool": st.sampled_from(TOOLS),
    }
    return st.builds(Call, backend=st.just(backend), **{**fields, **limits}).map(_possible)


def _possible(call: Call) -> Call:
    """The same without what PyTorch and Triton themselves cannot do."""
    changes: dict[str, Any] = {}
    if call.tool == "dual":  # of a tensor with the negative bit
        changes["negative_bit"] = ()
    if call.called and call.placed != "copied":  # batch_norm of channels_last: a wrong gradient, if its weight has gaps
        changes["strided_parameters"] = False
    if call.called and "group" in (call.dw_norm, call.pw_norm):  # it crashes if channels_last, and needs no gradient
        changes["frozen"] = ()
    if call.called and call.authors and call.dtype in HALVES:  # a convolution takes one type, and autocast's is another
        changes |= {"wide_parameters": False, "tool": "" if call.tool == "autocast" else call.tool}
    if (call.backend, call.dtype, call.out_dtype) == ("triton", "float64", "bfloat16"):  # no conversion in interpreter
        changes["out_dtype"] = None
    return dataclasses.replace(call, **changes)


def saved_calls() -> list[Call]:
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines() if EXAMPLES.exists() else []
    return [Call(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(line).items()}) for line in lines]


def save(call: Call) -> None:
    """Add it to EXAMPLES, what is usual left out."""
    usual = dataclasses.asdict(Call())
    line = json.dumps({k: v for k, v in dataclasses.asdict(call).items() if v != usual[k]})
    with EXAMPLES.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
