"""What a backend is: a folder with two doors, `backend.py` and `norm_backend.py`, and the values that cross into them.

`Backend` and `NormBackend` below are the doors' signatures. Nothing here needs Triton or a compiler.

Letters, as everywhere in this package: x [N, C, H, W]; g subspaces (num_splits) of G = C / g channels each;
z [N, g, H, W] the logits before act_z; A [N, g, H, W] the attention maps; lse [N, g] = log sum exp act_z(z).
The map's type, of z, A, lse and statistics, is float32, or float64 for float64 x.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """The tensors of the general form."""

    x: Tensor  # [N, C, H, W], any strides
    scale: Tensor  # [C]
    shift: Tensor | None  # [C]
    v: Tensor  # [C]
    b: Tensor | None  # [g]


class NormInputs(NamedTuple):
    """The tensors of the form with BatchNorms. Without gamma1, dw and beta1 are scale and shift; without gamma2,
    beta2 is b."""

    x: Tensor  # [N, C, H, W], any strides; a backend gets none that is empty
    dw: Tensor  # [C]
    gamma1: Tensor | None  # [C]; None: there is no norm after the depthwise convolution
    beta1: Tensor | None  # [C]
    pw: Tensor  # [C]
    gamma2: Tensor | None  # [g]; None: there is none after the pointwise convolution
    beta2: Tensor | None  # [g]


class Options(NamedTuple):
    """All that a call says besides its tensors."""

    num_splits: int  # g
    relu_u: bool  # act_u is a ReLU, else the identity
    relu_z: bool  # act_z likewise
    out_dtype: torch.dtype | None = None  # of y; None: x's
    need_attention: bool = False  # A is returned
    need_lse: bool = True  # lse is returned: a backward may follow
    eps1: float = 0.0  # of the norm after the depthwise convolution
    eps2: float = 0.0  # of the norm after the pointwise convolution
    backend: str = "auto"  # who serves, by name, or "auto" for the choice by device


class Forward(NamedTuple):
    """What the general form's forward gives."""

    y: Tensor  # [N, C, H, W], strides of empty_like(x)
    attention: Tensor | None  # [N, g, H, W]; None, or of no elements, unless needed
    z: Tensor  # [N, g, H, W]
    lse: Tensor | None  # [N, g]; likewise


class Gradients(NamedTuple):
    """Of `Inputs`, each of its shape and type; None, or of no elements, where the input is None."""

    x: Tensor  # strides of empty_like(x)
    scale: Tensor
    shift: Tensor | None
    v: Tensor
    b: Tensor | None


class FixedNorm(NamedTuple):
    """A BatchNorm that uses its running statistics."""

    gamma: Tensor  # [K]
    beta: Tensor  # [K]
    mean: Tensor  # [K]
    var: Tensor  # [K]
    eps: float


class Running(NamedTuple):
    """What the statistics of a batch are blended into, in place."""

    mean: Tensor  # [K]
    var: Tensor  # [K], unbiased
    bias: Tensor | None  # [K] of the convolution before the norm: it moves the mean, and gets no gradient of it
    momentum: float


class Group(Protocol):
    """Several processes, each with a part of the batch."""

    def gather(self, moments: Tensor) -> Tensor:
        """Of [P, 3, K], rows count, mean and M2: those of all processes, [P', 3, K] in the same order everywhere."""

    def sum(self, t: Tensor) -> Tensor:
        """A new tensor, the sum over all processes."""


class Exchange(NamedTuple):
    """What a call with statistics of the batch changes or talks to, besides its results."""

    running1: Running | None = None  # of the depthwise norm; None: not updated
    running2: Running | None = None  # of the pointwise norm
    group: Group | None = None  # the processes that share the batch; None: this one alone


class InputStatistics(NamedTuple):
    """The rows of `first` [5, C]: the depthwise norm with the statistics of this batch."""

    scale: Tensor  # gamma1 * dw * rstd
    mean: Tensor  # of x
    rstd: Tensor  # 1 / sqrt(dw^2 var + eps1)
    var: Tensor  # of x, biased
    values: Tensor  # how many were averaged


class LogitStatistics(NamedTuple):
    """The rows of `second` [6, g]: the pointwise norm; without one: gain 1, offset b, rstd 1, and else 0."""

    gain: Tensor  # gamma2 * rstd
    offset: Tensor  # beta2 - gain * mean
    mean: Tensor  # of z
    rstd: Tensor  # 1 / sqrt(var + eps2)
    var: Tensor  # of z, biased
    values: Tensor  # how many were averaged


class NormSaved(NamedTuple):
    """What the forward with norms leaves to its backward."""

    z: Tensor  # [N, g, H, W], before the norm
    lse: Tensor  # [N, g]
    first: Tensor  # [5, C], rows of InputStatistics; empty without the depthwise norm
    second: Tensor  # [6, g], rows of LogitStatistics


class NormForward(NamedTuple):
    """What the forward with norms gives."""

    y: Tensor
    attention: Tensor | None  # None, or of no elements, unless needed
    z: Tensor
    lse: Tensor
    first: Tensor
    second: Tensor


class NormGradients(NamedTuple):
    """Of `NormInputs`, as `Gradients`. Those of parameters are this process's."""

    x: Tensor
    dw: Tensor
    gamma1: Tensor | None
    beta1: Tensor | None
    pw: Tensor
    gamma2: Tensor | None
    beta2: Tensor | None


class Backend(Protocol):
    """The door `backend.py`: the general form, without norms."""

    def forward(self, inputs: Inputs, options: Options) -> Forward: ...

    def backward(
        self,
        dy: Tensor | None,  # [N, C, H, W], any strides and float type; None: y had no gradient
        d_attention: Tensor | None,  # [N, g, H, W], the gradient that arrives at A itself
        inputs: Inputs,
        z: Tensor,  # and lse: what forward gave
        lse: Tensor,
        options: Options,
    ) -> Gradients: ...


class NormBackend(Protocol):
    """The door `norm_backend.py`: the form with BatchNorms, of which either may be absent."""

    def norm_forward(self, inputs: NormInputs, options: Options, exchange: Exchange) -> NormForward:
        """With the statistics of this batch."""

    def norm_backward(
        self,
        dy: Tensor | None,
        d_attention: Tensor | None,
        inputs: NormInputs,
        saved: NormSaved,
        options: Options,
        group: Group | None,
    ) -> NormGradients: ...

    def folded_forward(
        self,
        x: Tensor,  # [N, C, H, W]
        dw: Tensor | None,  # [C]; None: x itself is pooled, without act_u
        dw_bias: Tensor | None,  # [C]
        norm1: FixedNorm | None,  # None: dw and dw_bias are scale and shift
        pw: Tensor,  # [C]
        pw_bias: Tensor | None,  # [g]
        norm2: FixedNorm,
        options: Options,
    ) -> tuple[Tensor, Tensor | None]:
        """y and A, with both norms' running statistics; no gradients."""

    def moments(self, x: Tensor, group: Group | None) -> Tensor:
        """[3, C]: mean, biased variance and count of every channel of x."""
