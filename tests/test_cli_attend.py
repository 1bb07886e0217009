"""`ulsam-fused attend`: the figure has a panel for each subspace, and says what the maps really are."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ulsam_fused import cli
from ulsam_fused.cli import attend, stem


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def panels(path: Path) -> list[Any]:
    """The pictures in one row of a figure on white ground."""
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    band = pixels[int(pixels.shape[0] * 0.25) : int(pixels.shape[0] * 0.95)]  # below every title
    inked = (band.min(axis=2) < 0.97).any(axis=0).tolist()
    edges = [i for i in range(1, len(inked)) if inked[i] != inked[i - 1]]
    pairs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 20]
    return [band[:, a:b] for a, b in pairs]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A bright square, a red and a blue one, and stripes, on grey."""
    from PIL import Image

    pixels = torch.full((96, 128, 3), 90, dtype=torch.uint8)
    pixels[10:30, 10:30] = 250
    pixels[10:40, 60:90] = torch.tensor([220, 30, 30], dtype=torch.uint8)
    pixels[60:90, 10:40] = torch.tensor([30, 30, 220], dtype=torch.uint8)
    pixels[60:90, 70:120:4] = 200
    Image.fromarray(pixels.numpy()).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("num_splits", [1, 4])
def test_attend_draws_a_panel_for_each_subspace(
    num_splits: int, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    words = ["attend", str(picture), "-o", str(out), "--num-splits", str(num_splits), "--size", "128"]
    assert cli.main([*words, "--backend", "torch", "--device", "cpu"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines[-1] == str(out)
    assert lines[0] == f"picture 128 x 96, {num_splits} maps of 32 x 24, backend torch on cpu"
    found = panels(out)
    assert len(found) == num_splits + 1
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            width = min(one.shape[1], other.shape[1])
            assert abs(one[:, :width] - other[:, :width]).max() > 0.3  # of 1


def test_attend_prints_what_the_maps_really_are(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["attend", str(picture), "-o", str(tmp_path / "o.png"), "--size", "128", "--device", "cpu"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert "untrained" in lines[1]
    maps = attend.attend(attend.read(picture, 128), 4, 0, "reference")
    assert maps.sum((1, 2)).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    for line, a in zip(lines[3:7], maps, strict=True):
        top, nats = (float(word) for word in line.split()[1:3])
        assert top == pytest.approx(attend.peak(a), abs=0.06)
        assert nats == pytest.approx(attend.entropy(a), abs=0.006)
        assert 2 < top < a.numel()  # neither uniform nor one pixel
        assert 1 < nats < math.log(a.numel()) - 0.2


def test_attend_follows_the_seed(picture: Path) -> None:
    pixels = attend.read(picture, 96)
    first, again, other = (attend.attend(pixels, 4, seed, "torch") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).norm() > 1e-3 * first.norm()


def test_each_family_looks_where_its_structure_is(picture: Path) -> None:
    maps = attend.attend(attend.read(picture, 128), 8, 0, "torch")
    h, w = maps.shape[1:]
    regions = {"bright spots": (10, 10, 20), "warm colours": (10, 60, 30), "cool colours": (60, 10, 30)}
    for family, (top, left, side) in regions.items():
        a = maps[stem.FAMILIES.index(family)]
        at = int(a.argmax())
        row, column = at // w * stem.STRIDE, at % w * stem.STRIDE
        assert top - 8 <= row <= top + side + 8, (family, row, column, h)
        assert left - 8 <= column <= left + side + 8, (family, row, column)


def test_a_picture_of_one_colour_has_uniform_maps(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "grey.png")
    maps = attend.attend(attend.read(tmp_path / "grey.png", 64), 4, 0, "torch")
    assert maps.isfinite().all()
    assert all(attend.peak(a) < 1.01 for a in maps)


def test_what_is_no_picture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, folder = tmp_path / "text.jpg", tmp_path / "folder.jpg"
    text.write_text("not a picture")
    folder.mkdir()
    for path, part in ((text, "not a picture that Pillow can read"), (folder, "cannot be read")):
        assert cli.main(["attend", str(path), "-o", str(tmp_path / "o.png")]) == 2
        printed = capsys.readouterr().err
        assert part in printed
        assert len(printed.splitlines()) == 1
    assert not (tmp_path / "o.png").exists()


def test_demo_needs_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo.png"
    assert cli.main(["attend", "--demo", "--size", "96", "-o", str(out), "--device", "cpu"]) == 0
    assert len(panels(out)) == 5
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
