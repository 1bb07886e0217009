"""What `bench` times: the authors' module, plain PyTorch, and the fused operator. All are modules, x -> y.

Two functions are computed. "paper" is 2 * C weights and nothing else. "upstream" is the authors' published code:
biases, two BatchNorms and two ReLUs; with running statistics in inference, with the batch's where gradients are taken.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import reference, upstream
from ..modules import ULSAM

SHARPNESS = 16.0
"""Weights are this much larger than initial ones, so that A has peaks that 16 bits can show. No time depends on it."""


class Paper(nn.Module):
    """The paper's formula in eager PyTorch, one subspace after the other."""

    def __init__(self, channels: int, num_splits: int) -> None:
        super().__init__()
        self.num_splits = num_splits
        bound = SHARPNESS * (num_splits / channels) ** 0.5
        self.dw_weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))
        self.pw_weight = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        y = reference.subspace_attention(x, self.dw_weight, self.pw_weight, self.num_splits)
        assert isinstance(y, Tensor)
        return y


class Vectorised(Paper):
    """The paper's formula with no loop: one max-pool, one matrix product, one softmax, one multiply-add."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        g = self.num_splits
        m = F.max_pool2d(self.dw_weight.view(1, c, 1, 1) * x, kernel_size=3, stride=1, padding=1)
        z = self.pw_weight.view(1, g, 1, c // g) @ m.view(n, g, c // g, h * w)  # [n, g, 1, h * w]
        a = z.softmax(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        x_k = x.unflatten(1, (g, c // g))
        return torch.addcmul(x_k, x_k, a.view(n, g, 1, h, w)).flatten(1, 2)


class OnnxRuntime(nn.Module):
    """Another module in ONNX Runtime, on a CPU with as many threads as PyTorch has; one session for each shape."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()
        self._sessions: dict[torch.Size, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self._sessions:
            self._sessions[x.shape] = self._session(x)
        (y,) = self._sessions[x.shape].run(None, {"x": x.numpy()})
        return torch.from_numpy(y)

    def _session(self, x: Tensor) -> Any:  # onnxruntime.InferenceSession, which has no types
        import onnxruntime

        exported = torch.onnx.export(self.module, (x,), input_names=["x"], dynamo=True, verbose=False)
        assert exported is not None
        model = exported.model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Sources:
    """The modules that define the two functions, with the weights that every provider gets."""

    paper: Paper
    upstream: reference.ULSAM

    @classmethod
    def make(cls, x: Tensor, num_splits: int, training: bool) -> "Sources":
        """Weights have x's type and device; the running statistics come from one pass over x."""
        torch.manual_seed(0)
        paper, theirs = Paper(x.shape[1], num_splits), reference.ULSAM(x.shape[1], num_splits)
        for subspace in theirs.subspaces:
            nn.init.constant_(subspace.get_parameter("bn_point.weight"), SHARPNESS / 4)  # its input has variance 1
        paper.to(x.device, x.dtype)
        theirs.to(x.device, torch.float32)
        with torch.no_grad():
            theirs(x.float())
        return cls(paper, theirs.to(x.dtype).train(training))


@dataclass(frozen=True)
class Provider:
    """One way to compute the layer. `build` makes it from the sources; it must equal the source that `form` names."""

    name: str
    form: str  # "paper" or "upstream"
    note: str
    build: Callable[[Sources], nn.Module]
    compiled: bool = False
    fused: bool = False
    inference_only: bool = False

    def takes_part(self, direction: str) -> bool:
        """Whether a row of it means something in this direction.

        Batch statistics cost passes over x that the paper's form does not need, so the fused authors' form trains in a
        direction of its own, "train-norm". The authors' module is the baseline in every direction.
        """
        if self.inference_only:
            return direction == "forward"
        if self.form == "upstream":
            return not self.fused or direction in ("forward", "train-norm")
        return direction != "train-norm"


def providers(backends: list[str], compiled: bool, onnx: bool = False) -> list[Provider]:
    """Everything to be timed, the authors' module first."""
    plain = [
        Provider("eager", "upstream", "the authors' module in eager PyTorch", lambda s: s.upstream),
        Provider(
            "paper-eager", "paper", "the paper's formula in eager PyTorch, subspace by subspace", lambda s: s.paper
        ),
        Provider("vectorised", "paper", "the paper's formula in plain PyTorch without a loop", _vectorised),
    ]
    found = list(plain)
    if compiled:
        found += [_compiled(plain[0]), _compiled(plain[2])]
    if onnx:
        note = "vectorised, exported by torch.onnx, in ONNX Runtime"
        found.append(
            Provider("vectorised+onnx", "paper", note, lambda s: OnnxRuntime(_vectorised(s)), False, False, True)
        )
    for backend in backends:
        found += [_fused(backend), _fused_norm(backend)]
    return found


def _vectorised(sources: Sources) -> nn.Module:
    module = Vectorised(sources.paper.dw_weight.shape[0], sources.paper.num_splits)
    return _like(sources.paper, module)


def _like(paper: Paper, module: nn.Module) -> nn.Module:
    module.to(paper.dw_weight.device, paper.dw_weight.dtype).load_state_dict(paper.state_dict())
    return module


def _compiled(provider: Provider) -> Provider:
    def build(sources: Sources) -> nn.Module:
        module = copy.deepcopy(provider.build(sources))  # compiling changes the module, and it may be a source
        module.compile(dynamic=False)
        return module

    note = f"{provider.name} under torch.compile"
    return Provider(f"{provider.name}+compile", provider.form, note, build, compiled=True)


def _onnx_runtime(provider: Provider) -> Provider:
    note = f"{provider.name}, exported by torch.onnx, in ONNX Runtime"
    return Provider(
        f"{provider.name}+onnx", provider.form, note, lambda s: OnnxRuntime(provider.build(s)), inference_only=True
    )


def _fused(backend: str) -> Provider:
    def build(sources: Sources) -> nn.Module:
        paper = sources.paper
        return _like(paper, ULSAM(paper.dw_weight.shape[0], paper.num_splits, backend=backend))

    return Provider(f"fused[{backend}]", "paper", f'ulsam_fused.ULSAM, backend "{backend}"', build, fused=True)


def _fused_norm(backend: str) -> Provider:
    def build(sources: Sources) -> nn.Module:
        theirs = sources.upstream
        p = next(theirs.parameters())
        channels = sources.paper.dw_weight.shape[0]
        layer = upstream.ULSAM(channels, num_splits=theirs.num_splits, backend=backend, device=p.device, dtype=p.dtype)
        layer.load_state_dict(theirs.state_dict())
        return layer.train(theirs.training)

    note = f'ulsam_fused.upstream.ULSAM, backend "{backend}"'
    return Provider(f"fused[{backend}]+norm", "upstream", note, build, fused=True)
