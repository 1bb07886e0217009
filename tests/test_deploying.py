"""What docs/deploying.md promises: the layers in ONNX, as ATen operators alone, and in other runtimes."""

import copy
import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from ulsam_fused.kernels.contract import Options

import ulsam_fused as uf
from tests.helpers.processes import ROOT, run_python

pytestmark = [
    pytest.mark.xdist_group("compiler"),  # one process warms torch.export up
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"),
]

FORMS: dict[str, Callable[[], uf.ULSAM]] = {
    "paper": lambda: uf.ULSAM(8, 4),
    "relu": lambda: uf.ULSAM(8, 2, bias=True, activation="relu"),
    "norm": lambda: uf.ULSAM(8, 4, bias=True, activation="relu", norm="batch"),
    "upstream": lambda: uf.upstream.ULSAM(8, num_splits=4),
    "pool_input": lambda: uf.upstream.ULSAM(8, num_splits=4, legacy_maxpool_input=True),
}

STEPS = {"paper": 11, "relu": 14, "norm": 14, "upstream": 14, "pool_input": 12}
"""How many nodes of an ONNX graph each form takes: five of them are the softmax, which needs no shapes that way."""


class Network(nn.Module):
    """Layers of several forms side by side, in eval mode, with peaked maps; each y, and each A."""

    def __init__(self, forms: list[str], maps: bool = True) -> None:
        super().__init__()
        self.maps = maps
        self.layers = nn.ModuleList(FORMS[form]() for form in forms)
        for module in self.modules():
            if isinstance(module, uf.ULSAM):
                for name, weight in module.named_parameters():
                    if name == "pw_weight" or name.endswith("conv_point.weight"):
                        nn.init.uniform_(weight, 10, 20)
            if isinstance(module, nn.BatchNorm2d):
                for t in (module.bias, module.running_mean):
                    nn.init.normal_(t)
                for t in (module.weight, module.running_var):
                    nn.init.uniform_(t, 0.5, 2)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [layer(x) for layer in self.layers]
        return outputs + [layer.attention(x) for layer in self.layers] if self.maps else outputs


X = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(3, 8, 7, 4, generator=torch.Generator().manual_seed(2))
"""Of other sizes than those of the export."""


def dynamic_shapes() -> tuple[dict[int, torch.export.Dim]]:
    n, h, w = (torch.export.Dim(name, min=2, max=64) for name in "nhw")
    return ({0: n, 2: h, 3: w},)


def exported(network: nn.Module) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (X,), dynamic_shapes=dynamic_shapes())
    assert "ulsam_fused.forward" in str(program.graph)
    return program


def assert_right(network: Network, found: list[Any], x: Tensor = OTHER) -> None:
    """Each y - x and A: off float64 by at most twice what eager float32 is, and a rounding of y or of the logits."""
    eager, golden = copy.deepcopy(network), copy.deepcopy(network).double()
    for layer in [*eager.layers, *golden.layers]:
        layer.backend = "reference"
    ys = len(network.layers)
    assert len(found) == (2 * ys if network.maps else ys)
    for i, (ours, ruler, true) in enumerate(zip(found, eager(x), golden(x.double()), strict=True)):
        ours, logits = torch.as_tensor(ours).double(), true.log().abs().amax() if i >= ys else 1
        least = torch.finfo(torch.float32).eps * logits * true.norm()
        moved = x.double() if i < ys else torch.zeros_like(true)
        if i < ys:
            assert (true - moved).norm() > 2 / x[0, 0].numel() * moved.norm(), "a flat map proves nothing"
        error, budget = (ours - true).norm(), 2 * (ruler.double() - true).norm() + least
        assert error <= budget, f"output {i}: error {error:.1e}, budget {budget:.1e}"


# --- ONNX -------------------------------------------------------------------------------------------------------------


def by_default(network: nn.Module) -> Any:
    program = torch.onnx.export(network, (X,), dynamic_shapes=dynamic_shapes(), dynamo=True, verbose=False)
    return program.model_proto


def from_program(network: nn.Module) -> Any:
    return torch.onnx.export(exported(network), verbose=False).model_proto


def by_torchscript(network: nn.Module) -> Any:
    onnx = pytest.importorskip("onnx")
    file, axes = io.BytesIO(), {"x": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(network, (X,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return onnx.load_from_string(file.getvalue())


@pytest.mark.slow  # exporters run, and the first loads ONNX's operators
@pytest.mark.parametrize(
    ("export", "forms"), [(by_default, list(FORMS)), (from_program, ["paper", "norm"]), (by_torchscript, list(FORMS))]
)
def test_onnx(export: Callable[[nn.Module], Any], forms: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Right values at other sizes, standard operators only, few nodes. `test_decomposed` has a program of all forms."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra onnx")
    import onnxruntime

    caplog.set_level(logging.ERROR)  # it lists what is not installed
    network = Network(forms)
    model = export(network)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_right(network, session.run(None, {session.get_inputs()[0].name: OTHER.numpy()}))
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    steps = [node.op_type for node in model.graph.node if node.op_type not in ("Constant", "Cast", "Identity")]
    fewest = sum(STEPS[form] for form in forms)  # TorchScript does not join what y and A share
    assert len(steps) <= (2 * fewest if export is by_torchscript else fewest), steps


# --- ATen operators alone ---------------------------------------------------------------------------------------------


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


def test_decomposed() -> None:
    network = Network(list(FORMS))
    program = exported(network).run_decompositions(uf.decompositions())
    assert operators(program) == {"aten"}
    assert_right(network, program.module()(OTHER))


def test_decomposed_half_precision() -> None:
    """x and parameters of 16 bits: computed in float32, as the kernels do, and stored once."""
    layer = uf.ULSAM(8, 4, out_dtype=torch.float32).half()
    x = OTHER.half()
    program = torch.export.export(layer, (x,)).run_decompositions(uf.decompositions())
    y = program.module()(x)
    assert y.dtype == torch.float32
    expected = layer(x) - x
    assert (y - x - expected).norm() <= 1e-5 * expected.norm()


def test_decomposed_training_mode() -> None:
    """Statistics of the batch, and the running ones: y - x and all buffers after two batches."""
    for form in ("norm", "upstream", "pool_input"):
        layer = Network([form]).layers[0].train().double()
        program = torch.export.export(copy.deepcopy(layer), (X.double(),), dynamic_shapes=dynamic_shapes())
        module = program.run_decompositions(uf.decompositions()).module()
        for x in (OTHER.double(), X.double()):
            torch.testing.assert_close(module(x) - x, layer(x) - x)
        buffers = dict(layer.named_buffers())
        for name, t in module.named_buffers():
            torch.testing.assert_close(t, buffers[name])


def test_compiled_calls_keep_the_operators() -> None:
    """ONNX gets their decompositions; neither compilers nor fake tensors may take these."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(str(graph.graph))
        return graph

    from torch._dynamo.backends.common import aot_autograd

    layer = uf.ULSAM(8, 4)
    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), dynamic=True)
    compiled(X.clone().requires_grad_()).sum().backward()
    assert len(graphs) == 2
    assert "ulsam_fused.forward" in graphs[0]
    assert "ulsam_fused.backward" in graphs[1]
    mode, channels_last = FakeTensorMode(shape_env=ShapeEnv()), X.contiguous(memory_format=torch.channels_last)
    with mode:
        x, weight = mode.from_tensor(channels_last), torch.empty(8)
        options = Options(4, False, False)
        _, _, z, _ = torch.ops.ulsam_fused.forward(x, weight, None, weight, None, *options)
    assert z.is_contiguous()  # by the fake; the decomposition would be channels_last as x


_FRESH = """
import sys
import torch

x, y = torch.load("values.pt")
plain = torch.export.load("plain.pt2").module()
torch.testing.assert_close(plain(x)[0] - x, y - x)
assert "ulsam_fused" not in sys.modules
try:
    torch.export.load("fused.pt2")
except Exception as error:
    print("refused")
import ulsam_fused
torch.testing.assert_close(torch.export.load("fused.pt2").module()(x)[0] - x, y - x)
print("loaded")
"""


@pytest.mark.slow  # a fresh process imports PyTorch
def test_saved_programs_in_a_fresh_process(tmp_path: Path) -> None:
    """Decomposed, a program needs nothing but PyTorch; with the operators it needs the package imported."""
    network = Network(["upstream"], maps=False)
    program = exported(network)
    torch.save((OTHER, network(OTHER)[0]), tmp_path / "values.pt")
    torch.export.save(program, tmp_path / "fused.pt2")
    torch.export.save(program.run_decompositions(uf.decompositions()), tmp_path / "plain.pt2")
    assert run_python(["-c", _FRESH], tmp_path, {"PYTHONPATH": str(ROOT)}).split() == ["refused", "loaded"]


def test_jit_trace() -> None:
    network = Network(list(FORMS))
    traced = torch.jit.trace(network, X)
    assert_right(network, traced(OTHER))
    assert str(traced.inlined_graph).count("aten::max_pool2d") == 2 * len(FORMS)  # for y and for A, not per subspace


def test_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of torch.export, loading and decomposing; what follows needs other packages, or a compiler."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:4]:
        exec(block, names)
    assert operators(names["plain"]) == {"aten"}
    torch.testing.assert_close(names["y"], names["model"](names["x"]))
    assert (tmp_path / "plain.pt2").exists()


# --- other runtimes ---------------------------------------------------------------------------------------------------

_PACKAGED = """
import torch, ulsam_fused

x, y = torch.load("values.pt")
found = torch._inductor.aoti_load_package("model.pt2")(x)
torch.testing.assert_close(found[0] - x, y - x)
print("ran")
"""


@pytest.mark.slow  # Inductor writes C++ and compiles it, and a fresh process imports PyTorch
def test_aot_inductor_in_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # where Inductor checks more of an operator
    network = Network(["paper"], maps=False)
    torch.save((OTHER, network(OTHER)[0]), tmp_path / "values.pt")
    options = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        path = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(exported(network), package_path=path, inductor_configs=options)
    assert run_python(["-c", _PACKAGED], tmp_path, {"PYTHONPATH": str(ROOT)}) == "ran\n"


def test_openvino() -> None:
    """From a module and from a decomposed program."""
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    network = Network(list(FORMS), maps=False)
    program = exported(network).run_decompositions(uf.decompositions())
    for model in (
        openvino.convert_model(network, example_input=X),
        openvino.convert_model(program),
    ):
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert_right(network, list(compiled(OTHER.numpy()).values()))


def test_executorch() -> None:
    exir = pytest.importorskip("executorch.exir", reason="needs executorch")
    runtime = pytest.importorskip("executorch.runtime", reason="needs executorch")
    network = Network(list(FORMS), maps=False)
    program = exported(network).run_decompositions(uf.decompositions())
    lowered = exir.to_edge(program).to_executorch()
    method = runtime.Runtime.get().load_program(lowered.buffer).load_method("forward")
    assert_right(network, method.execute([OTHER]))
