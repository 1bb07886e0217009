"""What the kernels touch, keep and launch. Triton checks no bounds: every buffer here lies between guards.

Inputs are surrounded by NaN, which a stray read carries into the results. Outputs and scratch are filled with NaN,
which an element that was not written keeps, and are surrounded by a pattern of bits that a stray write breaks.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.config import LaunchConfig

import ulsam_fused as uf
from golden import GRADIENTS, Case, check, make_case, run_backward, run_forward, run_public, saved
from launches import slab, split

launcher = pytest.importorskip("ulsam_fused.kernels.launcher", reason="needs Triton")

MARGIN = 4096  # bytes before and after every tensor, which keep its alignment
PATTERN = 0xA5

ODD = (2, 6, 9, 5)  # no block divides anything
EVEN = (1, 8, 8, 8)  # every block divides everything
THIN = (1, 4, 5, 1)  # every neighbour in a row is beyond a border
CONFIGS = pytest.mark.parametrize(
    ("shape", "config"),
    [(ODD, slab()), (ODD, split(block_p=8)), (EVEN, slab(block_c=4)), (EVEN, split(block_c=4)), (THIN, slab())],
    ids=["odd-slab", "odd-split", "even-slab", "even-split", "thin-slab"],
)


class Guards:
    """Allocates tensors between guards, and knows whether the guards still stand."""

    def __init__(self) -> None:
        self.buffers: list[
            tuple[Tensor, Tensor]
        ] = []  # all bytes, and what they must still be; -1 where free to change

    def empty(self, tensor: Tensor) -> Tensor:
        """A tensor of NaN with the shape, type and strides of this dense one."""
        size = tensor.numel() * tensor.element_size()
        buffer = torch.full((2 * MARGIN + size,), PATTERN, dtype=torch.uint8, device=tensor.device)
        promised = buffer.to(torch.int16)
        promised[MARGIN : MARGIN + size] = -1
        self.buffers.append((buffer, promised))
        return _view(buffer, tensor).fill_(torch.nan)

    def constant(self, tensor: Tensor | None) -> Tensor | None:
        """A copy that nothing may change, between NaN."""
        if tensor is None:
            return None
        margin = MARGIN // tensor.element_size()
        flat = torch.full((2 * margin + tensor.numel(),), torch.nan, dtype=tensor.dtype, device=tensor.device)
        buffer = flat.view(torch.uint8)
        copy = _view(buffer, tensor).copy_(tensor)
        self.buffers.append((buffer, buffer.to(torch.int16)))
        return copy

    def stand(self) -> bool:
        return all(bool(((buffer == promised) | (promised == -1)).all()) for buffer, promised in self.buffers)


def _view(buffer: Tensor, tensor: Tensor) -> Tensor:
    flat = buffer[MARGIN:-MARGIN].view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset())


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Guards:
    """Every allocation of the launcher goes through these guards."""
    guards = Guards()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        allocate = getattr(owner, name)

        def guarded(*arguments: Any, allocate: Any = allocate, **options: Any) -> Tensor:
            return guards.empty(allocate(*arguments, **options))

        monkeypatch.setattr(owner, name, guarded)
    return guards


def guarded_inputs(case: Case, guards: Guards) -> None:
    for name in ("x", "scale", "shift", "v", "b", "dy", "d_attention"):
        setattr(case, name, guards.constant(getattr(case, name)))


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_forward_stays_inside_its_tensors(
    shape: tuple[int, int, int, int], config: LaunchConfig, dtype: torch.dtype, guards: Guards, device: str
) -> None:
    case = make_case(shape, 2, dtype, device, channels_last=dtype == torch.float16)
    guarded_inputs(case, guards)
    y, A, z, lse = launcher.forward(*case.tensors(), 2, False, False, torch.float32, True, config=config)
    assert guards.stand()
    assert not any(t.isnan().any() for t in (y, A, z, lse))


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_backward_stays_inside_its_tensors(
    shape: tuple[int, int, int, int], config: LaunchConfig, dtype: torch.dtype, guards: Guards, device: str
) -> None:
    case = make_case(shape, 2, dtype, device, channels_last=dtype == torch.float16, relu_u=True, relu_z=True)
    z, lse = saved(case)
    guarded_inputs(case, guards)
    gradients = launcher.backward(
        case.dy, case.d_attention, *case.tensors(), guards.constant(z), guards.constant(lse), 2, True, True,
        config=config,
    )  # fmt: skip
    assert guards.stand()
    assert not any(t.isnan().any() for t in gradients)


def test_the_guards_see_a_stray_write_and_an_unwritten_element(guards: Guards) -> None:
    t = torch.empty(3)
    assert t.isnan().all()
    assert guards.stand()
    t.as_strided((1,), (1,), t.storage_offset() + 3).zero_()
    assert not guards.stand()


@CONFIGS
def test_two_runs_agree_bit_by_bit(shape: tuple[int, int, int, int], config: LaunchConfig, device: str) -> None:
    case = make_case(shape, 2, torch.float32, device, relu_u=True, relu_z=True)
    first, second = (
        (*launcher.forward(*case.tensors(), 2, True, True, None, True, config=config), run_backward(
            launcher, case, *saved(case), config=config
        ))
        for _ in range(2)
    )  # fmt: skip
    for a, b in zip(first[:4], second[:4], strict=True):
        assert torch.equal(a, b)
    for name in GRADIENTS:
        assert torch.equal(getattr(first[4], name), getattr(second[4], name)), name


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid: Any) -> Any:
        self.launches += 1
        return self.kernel[grid]


@pytest.mark.parametrize(("config", "launches"), [(slab(), 1), (split(), 2)], ids=["slab", "split"])
def test_launches(config: LaunchConfig, launches: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [Counted(launcher.forward_kernel), Counted(launcher.backward_kernel)]
    monkeypatch.setattr(launcher, "forward_kernel", kernels[0])
    monkeypatch.setattr(launcher, "backward_kernel", kernels[1])
    case = make_case((1, 2, 8, 3), 1, device=device)
    run_forward(launcher, case, config=config)
    run_backward(launcher, case, *saved(case), config=config)
    assert [kernel.launches for kernel in kernels] == [launches, launches]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_saved_for_backward(backend: str, dtype: torch.dtype, device: str) -> None:
    """x and the parameters themselves, and at most 8 bytes per pixel and subspace."""
    case = make_case((2, 4, 3, 5), 2, dtype, device)
    leaves = [t.requires_grad_() for t in case.tensors()]
    given = {t.untyped_storage().data_ptr() for t in leaves}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    x, scale, shift, v, b = leaves
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        uf.subspace_attention(x, scale, v, 2, shift, b, return_attention=True, backend=backend)
    assert 0 < sum(kept.values()) <= 8 * 2 * 2 * 3 * 5


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_inputs_are_not_changed(backend: str, device: str) -> None:
    case = make_case((1, 4, 3, 5), 2, torch.float32, device, relu_u=True, relu_z=True)
    before = [t.clone() for t in (*case.tensors(), case.dy, case.d_attention)]
    check(case, run_public(case, backend))
    for t, was in zip((*case.tensors(), case.dy, case.d_attention), before, strict=True):
        assert torch.equal(t, was)
