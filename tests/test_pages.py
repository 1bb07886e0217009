"""What the pages say: their code runs, their links, file names and messages exist, README stays short."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ulsam_fused as uf
from tests.helpers.messages import messages
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


def _run(page: Path, names: dict[str, object]) -> int:
    """Run the page's Python one block after the other, in these names; how many there are."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(block, names)
    return len(blocks)


def test_code_in_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(uf.reference.ULSAM(512, 4).state_dict(), "checkpoint.pth")
    names: dict[str, object] = {}
    assert _run(README, names) == 3
    y, maps = names["y"], names["maps"]
    assert isinstance(y, torch.Tensor)
    assert y.shape == (8, 512, 14, 14)
    assert isinstance(maps, torch.Tensor)
    assert maps.shape == (8, 4, 14, 14)


def test_code_in_getting_started_runs() -> None:
    """It has assertions of its own."""
    assert _run(ROOT / "docs/getting-started.md", {}) == 5


def test_code_in_authors_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a model of theirs, whose class is in a module of the name that they gave it."""
    monkeypatch.chdir(tmp_path)
    ulsam = ModuleType("ulsam")
    ulsam.ULSAM = uf.reference.ULSAM
    monkeypatch.setitem(sys.modules, "ulsam", ulsam)
    model = torch.nn.Module()
    model.attention = uf.reference.ULSAM(512, 4)
    torch.save(model.state_dict(), "checkpoint.pth")
    assert _run(ROOT / "docs/authors-code.md", {"self": model, "model": model, "torch": torch}) == 4
    assert isinstance(model.attention, uf.upstream.ULSAM)


def test_every_message_has_a_remedy() -> None:
    """And the page has no other. In the code … stands for what is put in."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:``(.+?) ``|`([^`]*)`) \| (.+) \|$", page, re.MULTILINE)
    explained = {quoted or plain for quoted, plain, _ in rows}
    found = messages()
    assert {text: file for text, file in found.items() if text not in explained} == {}
    assert explained - found.keys() == set()


def test_every_page_is_on_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.name for pattern in ("*.md", "*.ipynb") for path in (ROOT / "docs").glob(pattern)}
    pages |= {path.name.lower() for path in ROOT.glob("*.md") if path != README} | {"index.md"}
    assert pages == set(re.findall(r"[\w-]+\.(?:md|ipynb)", site))


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs/pictures/draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # PyTorch imports its decompositions for the first meta tensor that is computed with
def test_pictures_show_what_is_drawn_now(drawing: ModuleType) -> None:
    """Where not, `python docs/pictures/draw.py` draws them anew."""
    image = pytest.importorskip("PIL.Image")
    assert {path.name for path in drawing.HERE.glob("*.png")} == set(drawing.PICTURES)
    for name in drawing.PICTURES:
        with image.open(drawing.HERE / name) as picture:
            assert picture.info["Drawn from"] == drawing.digest(name), name


@pytest.mark.slow  # a process of its own imports PyTorch, matplotlib and scikit-learn, and trains a net
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has assertions of its own: the net recognises the digits, and the attention layers were trained."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for needed in ("ipykernel", "matplotlib", "sklearn"):
        pytest.importorskip(needed)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    notebook = nbformat.read(ROOT / "docs/photo-to-digits.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    nbclient.NotebookClient(notebook, timeout=300).execute()
    pictures = [cell for cell in notebook.cells if "image/png" in str(cell.get("outputs"))]
    assert len(pictures) == 2


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
