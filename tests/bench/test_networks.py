"""`ulsam-fused bench --model`: rows, table, and no time for a network that computes something else."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ulsam_fused import cli, modules
from ulsam_fused.bench import networks
from ulsam_fused.cli.options import bench

TINY = [
    "bench", "--model", "mobilenet_v1", "--width", "0.25", "--batch", "2", "--size", "32", "--device", "cpu",
    "--backend", "torch", "--seconds", "1e-6",
]  # fmt: skip


@pytest.mark.slow  # times three networks in two directions
@pytest.mark.parametrize("attention", ["paper", "upstream"])
def test_rows_and_table(attention: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    assert cli.main([*TINY, "--attention", attention, "--insert", "9=4", "--replace", "11=2", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert "after layer 9 (g=4)" in result["model"]
    assert [(row["direction"], row["provider"]) for row in result["rows"]] == [
        (direction, name)
        for direction in ("forward", "forward+backward")
        for name in ("vanilla", "eager", "fused[torch]")
    ]
    for row in result["rows"]:
        assert row["images_per_s"] == pytest.approx(2e6 / row["us_p50"], rel=1e-3, abs=0.006)
        assert 0 < row["us_p20"] <= row["us_p50"] <= row["us_p80"]
    printed = capsys.readouterr().out
    assert "training step, batch 2, float32, nchw" in printed
    assert "images/s" in printed
    assert "p20" not in printed
    assert "p20" in networks.table(result, verbose=True)


def test_the_same_weights_everywhere() -> None:
    args = _arguments("--insert", "9=4", "--attention", "upstream")
    found = networks.models(args, ["torch"], torch.device("cpu"))
    vanilla, eager, fused = (model.state_dict() for model in found.values())
    for key, t in fused.items():
        assert torch.equal(t, eager[key])
        assert key not in vanilla or torch.equal(t, vanilla[key])
    assert len(vanilla) < len(fused) == len(eager)
    assert not any(isinstance(module, modules.ULSAM) for module in found["eager"].modules())


@pytest.mark.parametrize("attention", ["paper", "upstream"])
def test_a_network_that_ignores_its_attention_is_not_timed(
    attention: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = networks.models

    def sabotaged(*arguments: object) -> dict[str, nn.Module]:
        found = original(*arguments)  # type: ignore[arg-type]
        for block in found["fused[torch]"].get_submodule("features"):
            if hasattr(block, "ulsam"):
                block.ulsam = nn.Identity()
        return found

    monkeypatch.setattr(networks, "models", sabotaged)
    assert cli.main([*TINY, "--attention", attention]) == 2
    assert (
        "fused[torch]: wrong: what ULSAM adds is off by 1.0e+00, allowed 1.0e-06; nothing was timed"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch must be at least 1"),
        (["--size", "16"], "--size from 32"),
        (["--case", "upstream-eval"], "--model does not go with --case"),
        (["--insert", "99=4"], "names layer 99"),
        (["--direction", "train-norm"], "--model measures forward and forward+backward, not train-norm"),
    ],
)
def test_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args([*TINY[1:], *words])
