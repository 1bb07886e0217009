"""A script: compiles calls of unusual form, which the interpreter accepts and the compiler might not.

Triton makes a constant of every integer argument that is 1 and of every None, so sizes of 1 and absent tensors are
other programs than those that `benchmarks/resources.py` compiles.
"""

import dataclasses
import itertools
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import resources
from torch import Tensor
from ulsam_fused.kernels import config as configs
from ulsam_fused.kernels import launcher


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(x: Tensor, num_splits: int, split: bool, *, biases: bool, maps: bool, dy: Tensor | None) -> None:
    """Forward and backward, through A and without y's gradient where asked."""
    n, c, h, w = x.shape
    p = meta(c, dtype=x.dtype if biases else torch.promote_types(x.dtype, torch.float32))
    shift, b = (p, meta(num_splits, dtype=p.dtype)) if biases else (None, None)
    arguments = ((n, c, h, w), num_splits, x.element_size(), launcher.is_channels_last(x), 1)
    forward, backward = (
        dataclasses.replace(choose(*arguments), split=split, strip_rows=configs.ROWS if split else 0)
        for choose in (configs.forward_config, configs.backward_config)
    )
    _, attention, z, lse = launcher.forward(
        x, p, shift, p, b, num_splits, biases, not biases, torch.float32, maps, maps, config=forward
    )
    da = attention if maps else None
    lse = meta(n, num_splits, dtype=z.dtype) if lse.numel() == 0 else lse
    launcher.backward(dy, da, x, p, shift, p, b, z, lse, num_splits, biases, not biases, config=backward)


def main() -> None:
    count = 0
    with resources.compile_only(90) as compiled:
        sizes = [(1, 1, 1, 1, 1), (2, 3, 1, 5, 3), (1, 2, 5, 1, 1), (2, 4, 9, 6, 2)]
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
        count = len(compiled)
    print(f"{count} launches compiled")


if __name__ == "__main__":
    main()
