"""The public function: bad input, types, memory formats, empty batches, autocast, the choice of a backend."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ulsam_fused as uf
from tests.helpers import backends as serving
from tests.helpers.layouts import STRIDED, channels_last
from ulsam_fused import backends


def arguments(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "x": torch.randn(2, 6, 4, 5, device=device, dtype=dtype),
        "dw_weight": torch.randn(6, device=device, dtype=dtype),
        "pw_weight": torch.randn(6, device=device, dtype=dtype),
        "num_splits": 3,
    }


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [[1.0]]}, TypeError, r"x must be a torch\.Tensor, got list"),
    ({"x": torch.randn(6, 4, 5)}, ValueError, r"x must have 4 dimensions .* got 3 with shape \[6, 4, 5\]"),
    ({"x": torch.ones(2, 6, 4, 5, dtype=torch.int64)}, TypeError, r"x must be one of float16.* got torch\.int64"),
    ({"x": torch.ones(2, 6, 4, 5, dtype=torch.complex64)}, TypeError, r"x must be one of .* got torch\.complex64"),
    ({"x": torch.ones(2, 6, 4, 5).to_sparse()}, TypeError, r"x must be a dense tensor"),
    ({"x": torch.ones(2, 6, 0, 5)}, ValueError, r"x must have H of at least 1"),
    ({"x": torch.ones(2, 6, 4, 0)}, ValueError, r"x must have W of at least 1"),
    ({"x": torch.ones(2, 0, 4, 5)}, ValueError, r"x must have C of at least 1"),
    ({"num_splits": 4}, ValueError, r"num_splits must divide the channels: x\.shape\[1\] = 6 is not divisible by 4"),
    ({"num_splits": 0}, ValueError, r"num_splits must be at least 1, got 0"),
    ({"num_splits": -3}, ValueError, r"num_splits must be at least 1, got -3"),
    ({"num_splits": 3.0}, TypeError, r"num_splits must be an integer, got 3\.0 of type float"),
    ({"num_splits": True}, TypeError, r"num_splits must be an integer, got True of type bool"),
    ({"dw_weight": torch.randn(5)}, ValueError, r"dw_weight must have shape \[6\], got \[5\]"),
    ({"dw_weight": torch.randn(6, 1)}, ValueError, r"dw_weight must have shape \[6\], got \[6, 1\]"),
    ({"dw_weight": None}, TypeError, r"dw_weight must be a torch\.Tensor, got NoneType"),
    ({"pw_weight": torch.randn(7)}, ValueError, r"pw_weight must have shape \[6\], got \[7\]"),
    ({"pw_weight": "w"}, TypeError, r"pw_weight must be a torch\.Tensor, got str"),
    ({"pw_weight": None}, TypeError, r"pw_weight must be a torch\.Tensor, got NoneType"),
    ({"dw_bias": torch.randn(3)}, ValueError, r"dw_bias must have shape \[6\], got \[3\]"),
    ({"pw_bias": torch.randn(6)}, ValueError, r"pw_bias must have shape \[3\], got \[6\]"),
    ({"pw_weight": torch.randn(6, device="meta")}, ValueError, r"pw_weight must be on x's device cpu, got meta"),
    ({"dw_weight": torch.randn(6).double()}, TypeError, r"dw_weight must be torch\.float32 as x, got torch\.float64"),
    ({"dw_weight": torch.randn(6).half()}, TypeError, r"dw_weight must be torch\.float32 as x, got torch\.float16"),
    ({"x": torch.ones(2, 6, 4, 5, dtype=torch.half), "dw_weight": torch.ones(6, dtype=torch.half)}, TypeError,
     r"pw_weight must have the type of dw_weight, torch\.float16, got torch\.float32"),
    ({"x": torch.ones(2, 6, 4, 5, dtype=torch.half), "dw_weight": torch.ones(6, dtype=torch.bfloat16)}, TypeError,
     r"dw_weight must be torch\.float16 as x or torch\.float32, got torch\.bfloat16"),
    ({"x": torch.ones(2, 6, 4, 5, dtype=torch.double)}, TypeError, r"dw_weight must be torch\.float64 as x"),
    ({"activation": "gelu"}, ValueError, r'activation must be None or "relu", got \'gelu\''),
    ({"out_dtype": "float32"}, TypeError, r"out_dtype must be a torch\.dtype or None, got 'float32'"),
    ({"out_dtype": torch.int32}, ValueError, r"out_dtype must be one of .* got torch\.int32"),
    ({"backend": "cuda"}, ValueError, r"backend must be one of 'auto', .* got 'cuda'"),
    ({"backend": None}, ValueError, r"backend must be one of .* got None"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str, monkeypatch: Any) -> None:
    for name in ("forward", "norm_forward"):  # nothing may be reached
        monkeypatch.setattr(f"ulsam_fused.ops.registration.{name}", None)
    monkeypatch.setattr("ulsam_fused.reference.general_form", None)
    with pytest.raises(error, match=message):
        uf.subspace_attention(**{**arguments(), **change})


@pytest.mark.parametrize("backend", serving.ALL)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_backends_agree_on_the_public_arguments(device: str, backend: str, activation: str | None) -> None:
    given = arguments(device, torch.float64)
    given["dw_bias"] = torch.randn(6, device=device, dtype=torch.float64)
    given["pw_bias"] = torch.randn(3, device=device, dtype=torch.float64)
    y, attention = uf.subspace_attention(**given, activation=activation, return_attention=True, backend=backend)
    expected, expected_attention = uf.reference.subspace_attention(
        **given, activation=activation, return_attention=True
    )
    torch.testing.assert_close(attention, expected_attention, rtol=1e-12, atol=0)
    torch.testing.assert_close(y - given["x"], expected - given["x"], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones_like(attention[:, :, 0, 0]))
    alone = uf.subspace_attention(**given, activation=activation, backend=backend)
    assert torch.equal(alone, y)


@pytest.mark.parametrize("backend", serving.ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(device: str, backend: str, dtype: torch.dtype) -> None:
    given = arguments(device, dtype)
    y, attention = uf.subspace_attention(**given, return_attention=True, backend=backend)
    assert y.dtype == dtype
    assert attention.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert uf.subspace_attention(**given, out_dtype=torch.float32, backend=backend).dtype == torch.float32
    if dtype.itemsize == 2:  # float32 parameters beside a 16-bit x; each gradient in its own input's type
        leaves = {
            k: v.float().requires_grad_() if k != "x" else v.requires_grad_()
            for k, v in given.items()
            if k != "num_splits"
        }
        y = uf.subspace_attention(**leaves, num_splits=3, backend=backend)
        assert y.dtype == dtype
        y.sum().backward()
        assert leaves["x"].grad.dtype == dtype
        assert leaves["dw_weight"].grad.dtype == leaves["pw_weight"].grad.dtype == torch.float32


@pytest.mark.parametrize("layout", [channels_last, *STRIDED], ids=lambda f: f.__name__)
def test_strides_are_those_of_empty_like(device: str, layout: Callable[[Tensor], Tensor]) -> None:
    given = arguments(device)
    given["x"] = layout(given["x"]).detach().requires_grad_()
    y = uf.subspace_attention(**given, backend="torch")
    assert y.stride() == torch.empty_like(given["x"]).stride()
    y.sum().backward()  # a gradient of stride 0


@pytest.mark.parametrize("backend", serving.ALL)
def test_empty_batch(device: str, backend: str) -> None:
    given = arguments(device)
    given["x"] = given["x"][:0].detach().requires_grad_()
    weights = [given["dw_weight"].requires_grad_(), given["pw_weight"].requires_grad_()]
    y, attention = uf.subspace_attention(**given, return_attention=True, backend=backend)
    assert y.shape == (0, 6, 4, 5)
    assert attention.shape == (0, 3, 4, 5)
    (y.sum() + attention.sum()).backward()
    assert given["x"].grad.shape == (0, 6, 4, 5)
    for weight in weights:
        assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("backend", serving.ALL)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_type_of_x_and_the_values(device: str, backend: str, half: torch.dtype) -> None:
    given = arguments(device)
    plain = uf.subspace_attention(**given, return_attention=True, backend=backend)
    with torch.autocast(device, dtype=half):
        y, attention = uf.subspace_attention(**given, return_attention=True, backend=backend)
        mixed = uf.subspace_attention(**{**given, "x": given["x"].to(half)}, backend=backend)
    assert y.dtype == torch.float32
    assert torch.equal(y, plain[0])
    assert torch.equal(attention, plain[1])
    assert mixed.dtype == half


@pytest.mark.parametrize("backend", serving.FUSED)
def test_without_an_activation_the_softmax_sees_no_bias(device: str, backend: str) -> None:
    pw_bias = torch.randn(3, device=device, requires_grad=True)
    uf.subspace_attention(**arguments(device), pw_bias=pw_bias, backend=backend).square().sum().backward()
    assert torch.equal(pw_bias.grad, torch.zeros_like(pw_bias))


@pytest.mark.parametrize("backend", serving.ALL)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_one_input_alone_needs_a_gradient(device: str, backend: str, activation: str | None) -> None:
    names = ("x", "dw_weight", "pw_weight", "dw_bias", "pw_bias")
    for name in names:
        found = []
        for by in (backend, "reference"):
            torch.manual_seed(0)
            given = {**arguments(device), "dw_bias": torch.randn(6, device=device)}
            given["pw_bias"] = torch.randn(3, device=device)
            given = {key: t.detach() if key in names else t for key, t in given.items()}
            leaf = given[name].requires_grad_()
            y = uf.subspace_attention(**given, activation=activation, backend=by)
            (y - given["x"].detach()).square().sum().backward()
            found.append(leaf.grad)
            assert all(given[other].grad is None for other in names if other != name)
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5, msg=name)


class TestChoice:
    @pytest.fixture(autouse=True)
    def restore(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_chosen", "auto")
        monkeypatch.setattr(backends, "_environment", "auto")

    def test_rule_for_auto(self) -> None:
        assert uf.get_backend() == "auto"
        assert backends.resolve("auto", torch.device("cuda", 0)) == "triton"
        assert backends.resolve("auto", torch.device("meta")) == "torch"

    def test_rule_for_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """C++ where it can be compiled; else PyTorch, and one warning says why."""
        cpu, problem = torch.device("cpu"), None
        monkeypatch.setattr(backends, "why_not_cpp", lambda device: problem)
        backends._warn_once.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backends.resolve("auto", cpu) == "cpp"
        problem = "there is no C++ compiler: install one"
        with pytest.warns(UserWarning, match="computes in PyTorch .*there is no C.. compiler: install one") as told:
            assert backends.resolve("auto", cpu) == backends.resolve("auto", cpu) == "torch"
        assert len(told) == 1
        with pytest.raises(RuntimeError, match='backend "cpp" cannot serve a tensor on cpu: there is no'):
            backends.resolve("cpp", cpu)

    @pytest.mark.parametrize("door", [backends.door, backends.norm_door])
    def test_each_device_has_its_own_door(self, door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("triton", reason="needs Triton")
        monkeypatch.setattr(backends, "_doors", {})
        monkeypatch.setattr(backends, "_norm_doors", {})
        devices = (torch.device("cpu"), torch.device("cuda", 0), torch.device("meta"))
        found = [door("auto", device).__name__.rpartition(".")[0] for device in devices]
        assert found == [
            f"ulsam_fused{backends._FOLDERS[name]}"
            for name in (backends.resolve("auto", devices[0]), "triton", "torch")
        ]

    def test_cpp_serves_a_cpu_alone(self) -> None:
        with pytest.raises(RuntimeError, match='"cpp" cannot serve a tensor on cuda:0: '):
            backends.resolve("cpp", torch.device("cuda", 0))

    def test_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_environment", "reference")
        cpu = torch.device("cpu")
        assert uf.get_backend() == "reference"
        assert backends.resolve("auto", cpu) == "reference"
        uf.set_backend("torch")
        assert uf.get_backend() == "torch"
        assert backends.resolve("auto", cpu) == "torch"
        assert backends.resolve("reference", cpu) == "reference"
        uf.set_backend("auto")
        assert uf.get_backend() == "reference"

    def test_set_backend_takes_effect_on_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []
        original = uf.reference.general_form
        monkeypatch.setattr(
            "ulsam_fused.reference.general_form", lambda x, *a, **k: (seen.append(x), original(x, *a, **k))[1]
        )
        uf.subspace_attention(**arguments())
        assert not seen
        uf.set_backend("reference")
        uf.subspace_attention(**arguments())
        assert len(seen) == 1
        uf.subspace_attention(**arguments(), backend="torch")
        assert len(seen) == 1

    def test_unknown_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="backend must be one of"):
            uf.set_backend("cudnn")
        assert uf.get_backend() == "auto"
        monkeypatch.setattr(backends, "_environment", "cudnn")
        with pytest.raises(ValueError, match="the environment variable ULSAM_FUSED_BACKEND must be one of"):
            uf.subspace_attention(**arguments())

    def test_triton_on_a_cpu_without_the_interpreter_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "interpreting", lambda: False)
        monkeypatch.setattr("ulsam_fused.backends._doors", {})
        with pytest.raises(RuntimeError, match=r'backend "triton" cannot serve .* set TRITON_INTERPRET=1'):
            uf.subspace_attention(**arguments(), backend="triton")


class TestExplain:
    def test_cpu(self) -> None:
        text = uf.explain(torch.randn(8, 512, 14, 14), 4)
        assert "32 slabs" in text
        assert "98.0 KiB" in text
        assert f"backend: {backends.resolve('auto', torch.device('cpu'))}" in text

    def test_regimes(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_chosen", "triton")
        x = torch.empty(1, 8, 7, 7, device=device).contiguous(memory_format=torch.channels_last)
        few = uf.explain(x, 4)
        assert "channels_last" in few
        assert "slab, one launch" in few
        assert "LaunchConfig(split=False" in few
        large = uf.explain(torch.empty(1, 64, 112, 112, device=device), 1)
        assert "split, two launches: a slab has more than 128 KiB" in large
        assert "LaunchConfig(split=True" in large

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="num_splits must divide"):
            uf.explain(torch.randn(1, 6, 2, 2), 4)
        with pytest.raises(TypeError, match="x must be a"):
            uf.explain(None, 4)  # type: ignore[arg-type]
