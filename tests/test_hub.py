"""The authors' modules with the forwards of layers.py, and the same as a kernel of Hugging Face's Kernel Hub."""

import copy
import importlib.metadata
import importlib.util
from pathlib import Path
from types import MethodType

import pytest
import torch

from tests.helpers.authors import assert_close, step
from tests.helpers.processes import ROOT, run_python
from tools import hub
from ulsam_fused import layers, reference

# What a user of the Hub runs, in a process that knows nothing of the repository.
_SCRIPT = """
import importlib.util, pathlib, sys
import torch
folder = pathlib.Path(sys.argv[1])
def load(variant):
    path = folder / "build" / variant
    search = {"submodule_search_locations": [str(path)]}
    spec = importlib.util.spec_from_file_location(variant.replace("-", "_"), path / "__init__.py", **search)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
first, second = load("torch-cpu"), load("torch-cuda")  # one process takes both, with operators of their own
x, dw, pw = torch.randn(2, 8, 5, 6), torch.randn(8), torch.randn(8)
for kernel in (first, second):
    reference = sys.modules[kernel.__name__ + ".reference"]
    for backend in sys.argv[2:]:
        y = kernel.subspace_attention(x, dw, pw, 2, backend=backend)
        torch.testing.assert_close(y - x, reference.subspace_attention(x, dw, pw, 2) - x, rtol=1e-4, atol=1e-6)
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x, attend=kernel.subspace_attention):
        return attend(x, dw, pw, 2, backend="torch")
    torch.testing.assert_close(compiled(x), y, rtol=1e-4, atol=1e-6)
assert not [name for name in sys.modules if name.split(".")[0] in ("ulsam_fused", "kernels")]
print("served", kernel.layers.ULSAM.__name__)
"""

# The same by its library `kernels`, which checks what a layer may be.
_KERNELIZE = """
import copy, pathlib, sys
import torch
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize, register_kernel_mapping
from kernels import replace_kernel_forward_from_hub
sys.path.append(sys.argv[2])  # the repository, whose folder kernels/ is not that library
from ulsam_fused import reference
folder = pathlib.Path(sys.argv[1])
assert get_local_kernel(folder).layers
replace_kernel_forward_from_hub(reference.ULSAM, "ULSAM")
register_kernel_mapping({"ULSAM": {"cpu": LocalLayerRepository(repo_path=folder, layer_name="ULSAM")}})
model = torch.nn.Sequential(reference.ULSAM(8, 2, bias=True, norm="batch", activation="relu")).double()
plain = copy.deepcopy(model)
model = kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
built_for = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"  # not where the layer lies
assert model[0].forward.__func__.__module__.startswith(f"_ulsam_fused_{built_for}_")
x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
torch.testing.assert_close(model(x) - x, plain(x) - x)
torch.testing.assert_close(model.state_dict(), plain.state_dict())
print("kernelized")
"""


def authors(g: int = 3, channels: int = 12) -> reference.ULSAM:
    module = reference.ULSAM(channels, g, bias=True, norm="batch", activation="relu", eps=0.1).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    return module


@pytest.mark.parametrize("training", [False, True])
def test_the_authors_module_with_our_forward(training: bool) -> None:
    """y - x, all gradients under the authors' names, running statistics and counts."""
    theirs = authors().train(training)
    ours = copy.deepcopy(theirs)
    ours.forward = MethodType(layers.ULSAM.forward, ours)
    x, dy = torch.randn(2, 4, 12, 6, 5, dtype=torch.float64)
    for _ in range(2):
        (y, dx), (our_y, our_dx) = step(theirs, x, dy), step(ours, x, dy)
        assert_close("y - x", our_y - x, y - x)
        assert_close("dx - dy", our_dx - dy, dx - dy)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        # a norm takes biases out; what is left is rounding
        assert_close(name, p.grad, gradients[name], 1e-9 if training and "conv" in name else 0.0)
    for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert_close(name, buffer, other)


def test_a_subspace_alone_and_compiled() -> None:
    theirs = authors(1).subspaces[0]
    ours = copy.deepcopy(theirs)
    ours.forward = MethodType(layers.SubSpace.forward, ours)
    x = torch.randn(2, 12, 6, 5, dtype=torch.float64)
    y = theirs(x)
    assert_close("y - x", torch.compile(ours, backend="aot_eager", fullgraph=True)(x).detach() - x, y.detach() - x)
    for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert_close(name, buffer, other)


def test_norms_of_two_modes_are_refused() -> None:
    module = authors()
    module.subspaces[0].bn_dws.eval()
    with pytest.raises(ValueError, match="one mode"):
        layers.ULSAM.forward(module, torch.randn(2, 12, 5, 5, dtype=torch.float64))


def test_the_copy_holds_what_it_imports(tmp_path: Path) -> None:
    """No file names the package's operators, and none imports from outside of the copy."""
    hub.write(tmp_path)
    files = list((tmp_path / "build" / "torch-cuda").rglob("*.py"))
    assert len(files) == len(hub.needed()) + 1
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "torch.ops.ulsam_fused" not in text, path
        assert "import ulsam_fused" not in text or path.name == "__init__.py", path
        assert "from ulsam_fused" not in text, path
    assert not list((tmp_path / "build").rglob("*.cpp"))


@pytest.mark.slow  # a process that imports PyTorch, and Triton's interpreter
def test_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    hub.write(tmp_path)
    backends = ["torch", "reference", *["triton"] * (importlib.util.find_spec("triton") is not None)]
    environment = {"TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    said = run_python(["-c", _SCRIPT, str(tmp_path), *backends], cwd=tmp_path, env=environment)
    assert said == "served ULSAM\n"


@pytest.mark.slow  # a process that imports PyTorch
def test_by_the_library_kernels(tmp_path: Path) -> None:
    try:
        library = importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the library kernels")
    hub.write(tmp_path)
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(library.locate_file(""))}
    said = run_python(["-c", _KERNELIZE, str(tmp_path), str(ROOT)], cwd=tmp_path, env=environment)
    assert said == "kernelized\n"
