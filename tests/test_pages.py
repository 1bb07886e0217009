"""What the pages say: their code runs, their links and file names exist, README stays short."""

import re
from pathlib import Path

import pytest
import torch

import ulsam_fused as uf
from tests.helpers.processes import ROOT
from ulsam_fused.cli import COMMANDS

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("benchmarks", "docs", "examples", "kernels", "tests", "tools", "ulsam_fused", ".github")


@pytest.fixture(scope="module")
def paths() -> list[str]:
    """Every file and folder of the repository, with a slash before it, and one after a folder."""
    found = [*ROOT.glob("*.*"), *(ROOT / folder for folder in FOLDERS)]
    found += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return [f"/{path.relative_to(ROOT).as_posix()}{'/' * path.is_dir()}" for path in found]


def test_readme_is_read_in_a_minute_or_two() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "training.md"], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path, paths: list[str]) -> None:
    """A name may leave out the folders that its context gives. (training.md names files of data sets.)"""
    names = re.findall(r"`([\w./-]+\.(?:py|md|csv|yml|cff)|(?:[\w-]+/)+)`", page.read_text(encoding="utf-8"))
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_code_in_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(uf.reference.ULSAM(512, 4).state_dict(), "checkpoint.pth")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    y, maps = names["y"], names["maps"]
    assert isinstance(y, torch.Tensor)
    assert y.shape == (8, 512, 14, 14)
    assert isinstance(maps, torch.Tensor)
    assert maps.shape == (8, 4, 14, 14)


def test_commands_in_readme_are_all_there_are() -> None:
    lines = re.findall(r"^ulsam-fused (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines == list(COMMANDS)


@pytest.mark.parametrize(("dtype", "side"), [(torch.bfloat16, 28), (torch.bfloat16, 56), (torch.float16, 112)])
def test_half_precision_erases_the_layer(dtype: torch.dtype, side: int) -> None:
    """README's warning, at random initialisation."""
    x = torch.randn(2, 32, side, side).to(dtype)
    layer = uf.ULSAM(32, 4, backend="torch")
    assert (layer(x) == x).float().mean() > 0.99
    layer.out_dtype = torch.float32
    assert (layer(x) == x).float().mean() < 0.01
