"""What the kernels touch, keep and launch. Triton checks no bounds: every buffer here lies between guards.

Inputs are surrounded by NaN, which a stray read carries into the results. Outputs and scratch are filled with NaN,
which an element that was not written keeps, and are surrounded by a pattern of bits that a stray write breaks.
"""

import ast

import pytest
import torch
from torch import Tensor
from ulsam_fused.kernels.gpu.launching.config import LaunchConfig

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.golden import GRADIENTS, Case, check, make_case, run_backward, run_forward, run_public, saved
from tests.helpers.guards import Guards, guard_allocations
from tests.helpers.launches import count_launches, slab, split
from tests.helpers.processes import ROOT

launcher = pytest.importorskip("ulsam_fused.kernels.gpu.backend", reason="needs Triton")

ODD = (2, 6, 9, 5)  # no block divides anything
EVEN = (1, 8, 8, 8)  # every block divides everything
THIN = (1, 4, 5, 1)  # every neighbour in a row is beyond a border
CONFIGS = pytest.mark.parametrize(
    ("shape", "config"),
    [(ODD, slab()), (ODD, split(block_p=8)), (EVEN, slab(block_c=4)), (EVEN, split(block_c=4)), (THIN, slab())],
    ids=["odd-slab", "odd-split", "even-slab", "even-split", "thin-slab"],
)


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Guards:
    """Every allocation of the launcher goes through these guards."""
    return guard_allocations(monkeypatch)


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
    y, A, z, lse = launcher.forward(case.tensors(), case.options(out_dtype=torch.float32), config=config)
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
        case.dy, case.d_attention, case.tensors(), guards.constant(z), guards.constant(lse), case.options(),
        config=config,
    )  # fmt: skip
    assert guards.stand()
    assert not any(t.isnan().any() for t in gradients)


def test_strips_have_scratch_of_their_own(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one strip after the other: two in one place would give right results, but not on a GPU."""
    case = make_case((1, 2, 14, 5), 1, torch.float32, device)
    z, lse = saved(case)
    guards = guard_allocations(monkeypatch)
    launcher.backward(case.dy, case.d_attention, case.tensors(), z, lse, case.options(), config=split())
    assert (1, 1, 2, 2, 11, 8) in [tuple(t.shape) for t in guards.made]
    assert guards.unwritten() == []


ALLOCATIONS = {
    "torch.empty": lambda: torch.empty(3),
    "torch.empty_like": lambda: torch.empty_like(torch.zeros(3)),
    "torch.empty_strided": lambda: torch.empty_strided((3,), (1,)),
    "Tensor.new_empty": lambda: torch.zeros(1).new_empty(3),
    "Tensor.new_empty_strided": lambda: torch.zeros(1).new_empty_strided((3,), (1,)),
}


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_the_guards_see_a_stray_write_and_an_unwritten_element(name: str, guards: Guards) -> None:
    t = ALLOCATIONS[name]()
    assert t.isnan().all()
    assert guards.stand()
    assert guards.unwritten() == [(3,)]
    t.as_strided((1,), (1,), t.storage_offset() + 3).zero_()
    assert not guards.stand()


def test_the_doors_allocate_in_guarded_ways_alone() -> None:
    """Whatever allocates without values is among what the guards watch."""
    calls = {
        f"{'torch' if node.func.value.id == 'torch' else 'Tensor'}.{node.func.attr}"
        for path in (ROOT / "kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
        and "empty" in node.func.attr
    }  # fmt: skip
    assert {"torch.empty_like", "Tensor.new_empty_strided"} <= calls <= ALLOCATIONS.keys()


def test_gradients_have_storages_of_their_own(device: str) -> None:
    case = make_case((1, 4, 3, 5), 2, torch.float32, device, relu_u=True, relu_z=True)
    results = run_backward(launcher, case, *saved(case), config=slab())
    storages = [getattr(results, name).untyped_storage() for name in GRADIENTS]
    assert len({storage.data_ptr() for storage in storages}) == len(GRADIENTS)
    assert all(s.nbytes() == getattr(results, name).nbytes for s, name in zip(storages, GRADIENTS, strict=True))


@CONFIGS
def test_two_runs_agree_bit_by_bit(shape: tuple[int, int, int, int], config: LaunchConfig, device: str) -> None:
    case = make_case(shape, 2, torch.float32, device, relu_u=True, relu_z=True)
    first, second = (
        (*launcher.forward(case.tensors(), case.options(), config=config), run_backward(
            launcher, case, *saved(case), config=config
        ))
        for _ in range(2)
    )  # fmt: skip
    for a, b in zip(first[:4], second[:4], strict=True):
        assert torch.equal(a, b)
    for name in GRADIENTS:
        assert torch.equal(getattr(first[4], name), getattr(second[4], name)), name


@pytest.mark.parametrize(("config", "launches"), [(slab(), 1), (split(), 2)], ids=["slab", "split"])
def test_launches(config: LaunchConfig, launches: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case((1, 2, 8, 3), 1, device=device)
    counts = count_launches(monkeypatch)
    run_forward(launcher, case, config=config)
    run_backward(launcher, case, *saved(case), config=config)
    assert counts == {"forward_kernel": launches, "backward_kernel": launches}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", serving.FUSED)
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


@pytest.mark.parametrize("backend", serving.FUSED)
def test_inputs_are_not_changed(backend: str, device: str) -> None:
    case = make_case((1, 4, 3, 5), 2, torch.float32, device, relu_u=True, relu_z=True)
    before = [t.clone() for t in (*case.tensors(), case.dy, case.d_attention)]
    check(case, run_public(case, backend))
    for t, was in zip((*case.tensors(), case.dy, case.d_attention), before, strict=True):
        assert torch.equal(t, was)
