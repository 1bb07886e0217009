"""The layouts that data sets are distributed in: which image is in which set and class, and what lacks is named."""

import builtins
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.train_folders import imagefolder, images
from ulsam_fused.console.errors import UserError
from ulsam_fused.train import dataset_folders


def _sets(layout: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """{name: class} of both sets; every file that is named exists."""
    data = dataset_folders.read(layout, folder)
    found = []
    for one in (data.train, data.val):
        assert all((one.root / name).is_file() for name in one.names)
        found.append(dict(zip(one.names, (data.classes[k] for k in one.labels), strict=True)))
    return found[0], found[1]


def _write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_imagefolder(tmp_path: Path) -> None:
    imagefolder(tmp_path, 1, 1)
    (tmp_path / "train/a/notes.txt").write_text("no image")
    images(tmp_path, ["train/b/deeper/1.JPEG"])
    images(tmp_path, ["train/a/._0.jpg", "train/.ipynb_checkpoints/0.jpg", "val/.c/0.jpg", "val/a/.d/0.jpg"])
    train, val = _sets("imagefolder", tmp_path)
    assert train == {"train/a/0.png": "a", "train/b/0.png": "b", "train/b/deeper/1.JPEG": "b"}
    assert val == {"val/a/0.png": "a", "val/b/0.png": "b"}


def test_a_folder_named_test_serves(tmp_path: Path) -> None:
    imagefolder(tmp_path, 1, 1)
    (tmp_path / "val").rename(tmp_path / "test")
    assert set(_sets("imagefolder", tmp_path)[1]) == {"test/a/0.png", "test/b/0.png"}


@pytest.mark.parametrize("outside", [False, True])
def test_food101(tmp_path: Path, outside: bool) -> None:
    root = tmp_path / "food-101"
    images(root, ["images/pie/1.jpg", "images/pie/2.jpg", "images/soup/3.jpg", "images/soup/4.jpg"])
    _write(root / "meta/train.txt", "pie/1", "soup/3")
    _write(root / "meta/test.txt", "pie/2", "soup/4")
    train, val = _sets("food101", tmp_path if outside else root)
    assert train == {"images/pie/1.jpg": "pie", "images/soup/3.jpg": "soup"}
    assert val == {"images/pie/2.jpg": "pie", "images/soup/4.jpg": "soup"}


def test_lists_with_a_mark_of_their_encoding_and_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"pie/caf\xe9")
    images(tmp_path, [f"images/{name}.jpg", "images/soup/1.jpg", "images/pie/2.jpg"])
    _write(tmp_path / "meta/test.txt", "pie/2")
    (tmp_path / "meta/train.txt").write_bytes(b"\xef\xbb\xbfpie/caf\xe9\r\nsoup/1\r\n")
    assert _sets("food101", tmp_path)[0] == {f"images/{name}.jpg": "pie", "images/soup/1.jpg": "soup"}


DOGS = {"train_list": ["n1-Pug/n1_1.jpg", "n2-Boxer/n2_1.jpg"], "test_list": ["n1-Pug/n1_2.jpg"]}


@pytest.mark.parametrize(("place", "kind"), [("", "txt"), ("lists", "txt"), ("lists", "mat"), ("", "mat")])
def test_dogs(tmp_path: Path, place: str, kind: str) -> None:
    for name, files in DOGS.items():
        images(tmp_path / "Images", files)
        if kind == "txt":
            _write(tmp_path / place / f"{name}.txt", *files)
        else:
            _mat(tmp_path / place / f"{name}.mat", files)
    train, val = _sets("dogs", tmp_path)
    assert train == {"Images/n1-Pug/n1_1.jpg": "n1-Pug", "Images/n2-Boxer/n2_1.jpg": "n2-Boxer"}
    assert val == {"Images/n1-Pug/n1_2.jpg": "n1-Pug"}


def _mat(path: Path, files: list[str]) -> None:
    """As in Stanford's archive: a column of cells."""
    io, numpy = pytest.importorskip("scipy.io"), pytest.importorskip("numpy")
    cells = numpy.empty((len(files), 1), dtype=object)
    cells[:, 0] = files
    path.parent.mkdir(parents=True, exist_ok=True)
    io.savemat(path, {"file_list": cells})


def test_dogs_without_scipy_say_what_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DOGS:
        _write(tmp_path / f"{name}.mat", "")
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install scipy.*train_list\.txt"):
        dataset_folders.read("dogs", tmp_path)


def test_cub(tmp_path: Path) -> None:
    root = tmp_path / "CUB_200_2011"
    images(root / "images", ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg"])
    _write(root / "images.txt", "1 001.Albatross/a.jpg", "2 001.Albatross/b.jpg", "3 002.Auklet/c.jpg")
    _write(root / "train_test_split.txt", "1 1", "2 0", "3 1")
    train, val = _sets("cub", tmp_path)
    assert train == {"images/001.Albatross/a.jpg": "001.Albatross", "images/002.Auklet/c.jpg": "002.Auklet"}
    assert val == {"images/001.Albatross/b.jpg": "001.Albatross"}
    _write(root / "train_test_split.txt", "1 1", "2 0")
    with pytest.raises(UserError, match="do not belong together"):
        dataset_folders.read("cub", root)


def test_birdsnap(tmp_path: Path) -> None:
    images(tmp_path / "images", ["Auk/1.jpg", "Auk/2.jpg", "Wren/3.jpg"])
    _write(tmp_path / "test_images.txt", "path", "Auk/2.jpg")
    train, val = _sets("birdsnap", tmp_path)
    assert train == {"images/Auk/1.jpg": "Auk", "images/Wren/3.jpg": "Wren"}
    assert val == {"images/Auk/2.jpg": "Auk"}


@pytest.mark.parametrize(
    ("layout", "lines", "message"),
    [
        ("imagefolder", {}, r"needs folders train/ and val/"),
        ("food101", {}, r"train\.txt: no such file"),
        ("food101", {"meta/train.txt": "pie/1", "meta/test.txt": "soup/1"}, "the training set has not: soup"),
        ("food101", {"meta/train.txt": "pie/1", "meta/test.txt": "pie/1"}, "in both sets: images/pie/1.jpg"),
        ("food101", {"meta/train.txt": "1", "meta/test.txt": "2"}, "must name images as CLASS/FILE, got '1.jpg'"),
        ("food101", {"meta/train.txt": "pie/1", "meta/test.txt": ""}, "no test images"),
        ("dogs", {}, r"needs train_list\.txt or train_list\.mat"),
        ("cub", {"images.txt": "a/b.jpg", "train_test_split.txt": "1 0"}, "every line must be a number and a value"),
        ("birdsnap", {"test_images.txt": "Auk/1.jpg"}, "images: no such folder"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, layout: str, lines: dict[str, str], message: str) -> None:
    for name, text in lines.items():
        _write(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        dataset_folders.read(layout, tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        dataset_folders.read("cub", tmp_path / "absent")
