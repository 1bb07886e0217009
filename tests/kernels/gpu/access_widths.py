"""A script: the widest load and store, in bytes, of marches over float32 maps whose strides have much alignment.

Where columns are clamped at a border, kernels promise the compiler neighbours that are none, so that it lays lanes
along rows. If it knew of any alignment as well, it would read several elements at once, and the wrong ones. For sm_90,
or for the AMD architecture that is named.
"""

import dataclasses
import json
import sys

import torch
from torch import Tensor
from ulsam_fused.kernels.contract import Inputs, Options
from ulsam_fused.kernels.gpu import backend as launcher
from ulsam_fused.kernels.gpu.launching import config as configs

from benchmarks.compiled import amd, machine_code
from benchmarks.compiled.stub_driver import compile_only, phases


def marches(x: Tensor, arch: int | str) -> dict[str, tuple[int, int]]:
    n, c, h, w = x.shape
    shape = (n, c, h, w)
    p, z, lse = (torch.empty(s, device="meta") for s in ((c,), (n, 1, h, w), (n, 1)))
    forward, backward = (
        dataclasses.replace(choose(shape, 1, 4, False, 1), split=True, strip_rows=configs.ROWS)
        for choose in (configs.forward_config, configs.backward_config)
    )
    options = Options(1, False, False)
    with compile_only(arch, of=frozenset({"logits", "march"})) as compiled:
        launcher.forward(Inputs(x, p, None, p, None), options, config=forward)
        launcher.backward(x, None, Inputs(x, p, None, p, None), z, lse, options, config=backward)
    found = {}
    for kernel, constants in compiled:
        name = "+".join(phases(constants))
        if arch == 90:
            code = machine_code.instructions(kernel)
            found[name] = machine_code.widest(code, "LDG"), machine_code.widest(code, "STG")
        else:
            text = kernel.asm["amdgcn"]
            found[name] = amd.widest(text, "load"), amd.widest(text, "store")
    return found


def main() -> None:
    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    inputs = {
        "every other channel of channels_last": meta(2, 128, 16, 16).to(memory_format=torch.channels_last)[:, ::2],
        "one column": meta(2, 64, 16, 1),
        "transposed": meta(2, 64, 16, 16).transpose(2, 3),
        "seven columns": meta(2, 64, 16, 7),
        "contiguous": meta(2, 64, 16, 16),
    }
    arch = sys.argv[1] if len(sys.argv) > 1 else 90
    print(json.dumps({name: marches(x, arch) for name, x in inputs.items()}))


if __name__ == "__main__":
    main()
