"""The images of a data set with their classes, read from folders laid out as the data sets are distributed."""

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from ..console.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those that torchvision's ImageFolder takes."""


@dataclass(frozen=True)
class Images:
    """A set of images."""

    root: pathlib.Path
    names: tuple[str, ...]  # of files below root
    labels: tuple[int, ...]  # the number of each one's class

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> pathlib.Path:
        """The file of one image."""
        return self.root / self.names[number]


@dataclass(frozen=True)
class Data:
    """A data set; `val` is its test set."""

    train: Images
    val: Images
    classes: tuple[str, ...]


def read(layout: str, folder: pathlib.Path) -> Data:
    """The images of a data set in one of LAYOUTS. No image is opened.

    Raises:
        UserError: a file or folder of this layout is missing, or its content is wrong; a set is empty.
    """
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    data = LAYOUTS[layout](folder)
    for name, images in (("training", data.train), ("test", data.val)):
        if not len(images):
            raise UserError(f"--data {folder}: no {name} images in the layout {layout}")
    return data


def imagefolder(folder: pathlib.Path) -> Data:
    """train/ and val/ (or test/), a folder for each class."""
    val = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or val is None:
        raise UserError(f"--data {folder}: needs folders train/ and val/ (or test/), with one folder for each class")
    return _data(folder, _files(folder / "train", "train/"), _files(val, f"{val.name}/"))


def food101(folder: pathlib.Path) -> Data:
    """Food-101: images/CLASS/ID.jpg, meta/train.txt and meta/test.txt."""
    folder = _inner(folder, "food-101", "meta")
    train, val = ([f"images/{line}.jpg" for line in _lines(folder / f"meta/{name}.txt")] for name in ("train", "test"))
    return _data(folder, train, val)


def dogs(folder: pathlib.Path) -> Data:
    """Stanford Dogs: Images/CLASS/ID.jpg; train_list and test_list, as .mat or as .txt, here or in lists/."""
    train, val = ([f"Images/{name}" for name in _list(folder, f"{which}_list")] for which in ("train", "test"))
    return _data(folder, train, val)


def cub(folder: pathlib.Path) -> Data:
    """CUB-200-2011: images.txt, train_test_split.txt, images/CLASS/ID.jpg."""
    folder = _inner(folder, "CUB_200_2011", "images.txt")
    names, training = (_table(folder / name) for name in ("images.txt", "train_test_split.txt"))
    if names.keys() != training.keys() or not set(training.values()) <= {"0", "1"}:
        raise UserError(f"{folder}: images.txt and train_test_split.txt do not belong together")
    train, val = ([f"images/{names[k]}" for k in names if training[k] == which] for which in "10")
    return _data(folder, train, val)


def birdsnap(folder: pathlib.Path) -> Data:
    """Birdsnap: images/CLASS/ID.jpg and test_images.txt; all images that it does not list are for training."""
    folder = _inner(folder, "birdsnap", "test_images.txt")
    val = [f"images/{line}" for line in _lines(folder / "test_images.txt") if line != "path"]
    tests = set(val)
    return _data(folder, [name for name in _files(folder / "images", "images/") if name not in tests], val)


LAYOUTS: dict[str, Callable[[pathlib.Path], Data]] = {
    f.__name__: f for f in (imagefolder, food101, dogs, cub, birdsnap)
}


def _data(root: pathlib.Path, train: list[str], val: list[str]) -> Data:
    """Both sets from their names, whose second part is the class. Classes are numbered alphabetically."""
    classes = sorted({_class(name) for name in train})
    numbers = {name: i for i, name in enumerate(classes)}
    unknown = sorted({_class(name) for name in val} - set(classes))
    if unknown:
        raise UserError(f"--data {root}: the test set has a class that the training set has not: {unknown[0]}")
    twice = set(train) & set(val)
    if twice:
        raise UserError(f"--data {root}: in both sets: {min(twice)}")
    training, test = (
        Images(root, tuple(names), tuple(numbers[_class(name)] for name in names)) for names in (train, val)
    )
    return Data(training, test, tuple(classes))


def _class(name: str) -> str:
    """CLASS of FOLDER/CLASS/FILE."""
    parts = name.split("/")
    if len(parts) < 3:
        raise UserError(f"a list must name images as CLASS/FILE, got {'/'.join(parts[1:])!r}")
    return parts[1]


def _files(folder: pathlib.Path, prefix: str) -> list[str]:
    """The images in a folder of class folders, sorted; the prefix comes before each name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # .ipynb_checkpoints
        if pathlib.Path(place) != folder:
            below = pathlib.Path(place).relative_to(folder).as_posix()
            found += [f"{prefix}{below}/{file}" for file in sorted(files) if _is_image(file)]
    return found


def _is_image(name: str) -> bool:
    """By its ending; hidden files, such as macOS's ._1.jpg, are none."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _inner(folder: pathlib.Path, name: str, mark: str) -> pathlib.Path:
    """The folder `name` that holds `mark`, which may be given itself or by its parent."""
    return folder / name if not (folder / mark).exists() and (folder / name / mark).exists() else folder


def _lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names as the file system gives them
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return [line for line in map(str.strip, text.splitlines()) if line]


def _table(path: pathlib.Path) -> dict[str, str]:
    """{number: value} from lines of a number and a value."""
    pairs = [line.split(maxsplit=1) for line in _lines(path)]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: every line must be a number and a value")
    return dict(pairs)


def _list(folder: pathlib.Path, name: str) -> list[str]:
    """The names in a list of Stanford Dogs."""
    places = [folder / place / f"{name}{kind}" for kind in (".txt", ".mat") for place in ("", "lists")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"--data {folder}: needs {name}.txt or {name}.mat, here or in lists/")
    if path.suffix == ".txt":
        return _lines(path)
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{path}: a .mat file needs SciPy (pip install scipy); or write its file_list to {name}.txt, a name a line"
        ) from None
    try:
        return [str(cell[0]) for cell in loadmat(path)["file_list"].ravel()]
    except (KeyError, IndexError, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{path}: holds no file_list: {error}") from None
