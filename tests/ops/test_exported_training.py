"""Exported programs train as the layers do: PyTorch finds the derivatives of the operators by their names."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf

pytestmark = pytest.mark.xdist_group("compiler")  # one process warms torch.export up


def network(form: str) -> nn.Module:
    """The layer between two others; maps are peaked, so that its gradients are no rounding."""
    layer = {
        "paper": lambda: uf.ULSAM(4, 2),
        "norm": lambda: uf.ULSAM(4, 2, bias=True, activation="relu", norm="batch", eps=0.1),
        "upstream": lambda: uf.upstream.ULSAM(4, num_splits=2, eps=0.1),
        "pool_input": lambda: uf.upstream.ULSAM(4, num_splits=2, eps=0.1, legacy_maxpool_input=True),
    }[form]()
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, std=3)
            nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.Conv2d(4, 2, 1)).double()


def exported(model: nn.Module, strict: bool = False) -> nn.Module:
    n, h, w = (torch.export.Dim(name, min=2) for name in "nhw")
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: n, 2: h, 3: w},), strict=strict)
    assert "ulsam_fused." in str(program.graph)
    return program.module()


def assert_same_steps(program: nn.Module, model: nn.Module) -> None:
    """Two steps, on other maps than those of the export: all gradients, and all that is no parameter."""
    for _ in range(2):
        x, weights = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(2, 2, 4, 6, dtype=torch.float64)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        for module, leaf in zip((program, model), leaves, strict=True):
            module.zero_grad()
            (module(leaf) * weights).sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
        parameters = dict(program.named_parameters())
        for name, expected in model.named_parameters():
            if expected.grad is None:
                assert name not in parameters or parameters[name].grad is None, name
            else:
                torch.testing.assert_close(parameters[name].grad, expected.grad)
        buffers = dict(model.named_buffers())
        for name, t in program.named_buffers():
            assert not t.requires_grad, name
            torch.testing.assert_close(t, buffers[name])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["paper", "norm", "upstream", "pool_input"])
def test_a_program_trains(form: str, training: bool) -> None:
    """Without the warning that an operator has no derivative, and also where it was exported without gradients."""
    model = network(form).train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_same_steps(exported(copy.deepcopy(model)), model)
        if not training:
            with torch.no_grad():
                program = exported(copy.deepcopy(model))
            assert_same_steps(program, model)


@pytest.mark.slow  # TorchDynamo traces
def test_a_program_of_a_strict_export_trains() -> None:
    model = network("upstream")
    assert_same_steps(exported(copy.deepcopy(model), strict=True), model)


def test_a_program_without_lse_trains(device: str) -> None:
    """Exported without gradients it saves no lse, which the Triton kernels need in the backward."""
    pytest.importorskip("triton", reason="needs Triton")
    x = torch.randn(1, 2, 3, 3, device=device, dtype=torch.float64, requires_grad=True)
    layer = uf.ULSAM(2, 1, activation="relu", backend="triton", device=device, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(layer, (x.detach(),)).module()
    found = [torch.autograd.grad(module(x).pow(2).sum(), x) for module in (program, layer)]
    torch.testing.assert_close(*found)


def test_second_derivatives_of_a_program() -> None:
    for form in ("paper", "upstream"):
        model = network(form)
        x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
        found = []
        for module in (exported(copy.deepcopy(model)), model):
            (dx,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()], allow_unused=True))
        assert found[1][0].abs().max() > 0
        torch.testing.assert_close(*found)


def test_a_backward_that_was_compiled_has_no_derivative() -> None:
    tensors = [torch.randn(size, requires_grad=True) for size in ((1, 2, 3, 3), 2, 2)]
    x, scale, v = tensors
    options = (1, False, False, None, False, True, 0.0, 0.0, "torch")
    y, _, z, lse = torch.ops.ulsam_fused.forward(x, scale, None, v, None, *options)
    dx, *_ = torch.ops.ulsam_fused.backward(y, None, x, scale, None, v, None, z, lse, *options)
    with pytest.raises(RuntimeError, match=r"second derivatives .* need eager mode"):
        dx.sum().backward()


def test_every_device_has_the_operators() -> None:
    """So a compiled call on a device that no kernel knows reaches the PyTorch backend."""
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    for name in ("forward", "backward", "norm_forward", "norm_backward"):
        for key in ("CPU", "CUDA", "MPS", "XPU", "HPU", "PrivateUse1", "Meta"):
            assert has_kernel(f"ulsam_fused::{name}", key), (name, key)
            if key != "Meta":
                assert has_kernel(f"ulsam_fused::{name}", f"Autograd{key}"), (name, key)


def test_gradients_with_torchao_quantisation_aware_training() -> None:
    """PT2E: fake quantisation around the other layers, then a step: every parameter has its gradient."""
    pytest.importorskip("torchao", reason="needs torchao")
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    x = torch.randn(3, 3, 6, 5)
    for form in ("paper", "upstream"):
        program = torch.export.export(network(form).float(), (x,)).module()
        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
        prepared = prepare_qat_pt2e(program, quantizer)
        prepared(x).square().sum().backward()
        assert all(p.grad is not None for p in prepared.parameters())
        first = prepared.get_parameter("0.weight").grad
        assert isinstance(first, Tensor)
        assert first.abs().max() > 0
