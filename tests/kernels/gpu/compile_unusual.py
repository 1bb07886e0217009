"""A script: compiles calls of unusual form, which the interpreter accepts and the compiler might not.

Triton makes a constant of every integer argument that is 1 and of every None, so sizes of 1 and absent tensors are
other programs than those that `benchmarks/compiled/resources.py` compiles.
"""

import dataclasses
import itertools

import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Exchange, FixedNorm, Inputs, NormInputs, NormSaved, Options, Running
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu import norm_backend as norm_launcher
from ulsam_fused.kernels.gpu.launching import config as configs
from ulsam_fused.kernels.gpu.launching.geometry import is_channels_last, is_wide

from benchmarks.compiled.stub_driver import compile_only


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(x: Tensor, num_splits: int, split: bool, *, biases: bool, maps: bool, dy: Tensor | None) -> None:
    """Forward and backward, through A and without y's gradient where asked."""
    n, c, h, w = x.shape
    p = meta(c, dtype=x.dtype if biases else torch.promote_types(x.dtype, torch.float32))
    shift, b = (p, meta(num_splits, dtype=p.dtype)) if biases else (None, None)
    arguments = ((n, c, h, w), num_splits, x.element_size(), is_channels_last(x), 1)
    forward, backward = (
        dataclasses.replace(choose(*arguments), split=split, strip_rows=configs.ROWS if split else 0)
        for choose in (configs.forward_config, configs.backward_config)
    )
    inputs = Inputs(x, p, shift, p, b)
    _, attention, z, lse = launcher.forward(
        inputs, Options(num_splits, biases, not biases, torch.float32, maps, maps), config=forward
    )
    da = attention if maps else None
    lse = meta(n, num_splits, dtype=z.dtype) if lse is None else lse
    launcher.backward(dy, da, inputs, z, lse, Options(num_splits, biases, not biases), config=backward)


def call_norm(x: Tensor, g: int, split: bool, *, batch1: bool, batch2: bool, beta: bool, dy: Tensor | None) -> None:
    """The backward with BatchNorm; where `beta` is false, with parameters of x's type and without act_z."""
    n, c, h, w = x.shape
    p = meta(c, dtype=torch.float32 if beta else x.dtype)
    k = meta(g, dtype=p.dtype)
    config = configs.backward_config((n, c, h, w), g, x.element_size(), is_channels_last(x), 1)
    config = dataclasses.replace(config, split=split, strip_rows=configs.ROWS if split else 0)
    z = meta(n, g, h, w)
    inputs = NormInputs(x, p, p if batch1 else None, p if beta else None, p, k if batch2 else None, k if beta else None)
    norm_launcher.norm_backward(
        dy, z if dy is None else None, inputs, NormSaved(z, meta(n, g), meta(5, c), meta(6, g)),
        Options(g, not beta, beta, eps1=1e-5), config=config,
    )  # fmt: skip


def call_norm_forward(x: Tensor, g: int, split: bool, *, batch1: bool, batch2: bool, beta: bool) -> None:
    """The forward with BatchNorm; where `beta` is false, with parameters of x's type, no maps and nothing updated."""
    n, c, h, w = x.shape
    p = meta(c, dtype=torch.float32 if beta else x.dtype)
    k = meta(g, dtype=p.dtype)
    config = configs.norm_forward_config((n, c, h, w), g, x.element_size(), is_channels_last(x), 1)
    config = dataclasses.replace(config, split=split, strip_rows=configs.ROWS if split else 0)
    half1, half2 = meta(c, dtype=torch.bfloat16), meta(g, dtype=torch.bfloat16)
    norm_launcher.norm_forward(
        NormInputs(x, p, p if batch1 else None, p if beta else None, p, k if batch2 else None, k if beta else None),
        Options(g, not beta, beta, torch.float32, beta, eps1=1e-5, eps2=1e-3),
        Exchange(
            Running(half1, half1, p, 0.1) if beta and batch1 else None,
            Running(half2, half2, None, 1.0) if beta and batch2 else None,
        ), config=config,
    )  # fmt: skip


def call_folded(x: Tensor, g: int, split: bool, *, dw: bool, norm1: bool, beta: bool) -> None:
    """The forward with both norms folded, or the first absent, or x itself pooled; biases and maps where `beta`."""
    n, c, h, w = x.shape
    p, k = meta(c), meta(g)
    config = configs.forward_config((n, c, h, w), g, x.element_size(), is_channels_last(x), 1)
    config = dataclasses.replace(config, split=split, strip_rows=configs.ROWS if split else 0)
    norm_launcher.folded_forward(
        x, p if dw else None, p if beta else None, FixedNorm(p, p, p, p, 1e-5) if norm1 else None,
        p, k if beta else None, FixedNorm(k, k, k, k, 1e-3),
        Options(g, beta, not beta, None, beta, eps1=1e-5, eps2=1e-3), config=config,
    )  # fmt: skip


FAR = 2**30 + 8
WIDE = [  # shape and strides where offsets need int64; each axis is 1 in some, and alone not 1 in others
    ((1, 3, 4, 5), (0, FAR, 5, 1)),
    ((2, 1, 4, 5), (8, 1, FAR, 1)),
    ((2, 3, 1, 5), (4 * FAR, FAR, 5, 1)),
    ((2, 3, 4, 1), (4 * FAR, FAR, 1, 1)),
    ((1, 1, 1, 3), (1, 1, 1, FAR)),
    ((1, 1, 3, 1), (1, 1, FAR, 1)),
    ((1, 3, 1, 1), (1, FAR, 1, 1)),
    ((1, 3, 2, 2), (1, 1, 2 * FAR, FAR)),
]


def sizes_of_1() -> None:
    """Every launcher with every size 1, wide and not, in turn with every tensor and with as few as can be."""
    for i, (shape, strides) in enumerate(WIDE):
        wide = torch.empty_strided(shape, strides, dtype=torch.float16, device="meta")
        assert is_wide(wide)
        for x, all_tensors in ((wide, i % 2 == 1), (meta(*shape), i % 2 == 0))[: 1 + (shape.count(1) == 3)]:
            split = not all_tensors
            norms = {"batch1": True, "batch2": all_tensors, "beta": all_tensors}
            call(x, 1, split, biases=all_tensors, maps=all_tensors, dy=x)
            call_norm(x, 1, split, **norms, dy=x)
            call_norm_forward(x, 1, split, **norms)
            call_folded(x, 1, split, dw=True, norm1=all_tensors, beta=all_tensors)
            norm_launcher.moments(x)


def main() -> None:
    with compile_only(90, until="ptx") as compiled:
        sizes = [(1, 1, 1, 1, 1), (2, 4, 9, 6, 2)]
        for (n, c, h, w, g), split in itertools.product(sizes, (False, True)):
            x = meta(n, c, h, w)
            call(x, g, split, biases=split, maps=not split, dy=x)
        x = meta(2, 4, 9, 6, dtype=torch.float16)
        views = {
            "channels_last": x.to(memory_format=torch.channels_last),
            "rows not flat": x[:, :, :, 1:],
            "transposed": x.transpose(2, 3),
            "one image for all": x[:1].expand(3, -1, -1, -1),
            "one channel for all": x[:, :1].expand(-1, 4, -1, -1),
            "int64 offsets": torch.empty_strided((1, 2, 3, 3), (0, 2**31, 3, 1), dtype=torch.float16, device="meta"),
        }
        for i, view in enumerate(views.values()):
            call(
                view, 2, bool(i % 2), biases=bool(i % 2), maps=True, dy=torch.empty_like(view).mean().expand(view.shape)
            )
        call(x, 2, True, biases=True, maps=True, dy=None)
        call(x, 2, False, biases=False, maps=True, dy=None)
        call(x, 2, False, biases=True, maps=False, dy=x.to(memory_format=torch.channels_last))
        call_norm(meta(1, 1, 1, 2), 1, False, batch1=True, batch2=True, beta=True, dy=None)
        call_norm(x, 2, True, batch1=True, batch2=False, beta=False, dy=x)
        call_norm(x, 2, True, batch1=False, batch2=True, beta=False, dy=views["channels_last"])
        both, first, second = ({"batch1": a, "batch2": b} for a, b in ((True, True), (True, False), (False, True)))
        call_norm_forward(meta(2, 3, 1, 1), 3, False, **both, beta=True)
        call_norm_forward(meta(1, 1, 1, 2, dtype=torch.float64), 1, True, **both, beta=True)
        call_norm_forward(views["rows not flat"], 2, False, **first, beta=False)
        call_norm_forward(views["int64 offsets"], 2, True, **second, beta=False)
        call_norm_forward(x.to(torch.bfloat16), 4, True, **first, beta=True)
        call_folded(meta(2, 3, 1, 1), 3, False, dw=True, norm1=True, beta=False)
        call_folded(x, 2, True, dw=False, norm1=True, beta=True)
        call_folded(x.double(), 2, False, dw=True, norm1=False, beta=True)
    with compile_only(90, until="ttir") as translated:
        sizes_of_1()
    print(f"{len(compiled)} launches compiled, {len(translated)} translated")


if __name__ == "__main__":
    main()
