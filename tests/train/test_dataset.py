"""Views and batches: functions of seed, epoch and number; broken images are reported and never trained as black."""

import hashlib
import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image, ImageOps, features

from tests.helpers.train_folders import image, imagefolder
from ulsam_fused.console import images
from ulsam_fused.console.errors import UserError
from ulsam_fused.train import dataset, dataset_folders, transforms
from ulsam_fused.train.dataset import Batch, EveryImage, Place, TrainingOrder, Views
from ulsam_fused.train.dataset_folders import Data
from ulsam_fused.train.unreadable import Broken, Failure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return dataset_folders.read("imagefolder", imagefolder(tmp_path_factory.mktemp("data")))


def _views(data: Data, training: bool = True, seed: int = 0) -> Views:
    return Views(data.train if training else data.val, "pillow", 32, 36, seed, training)


def _batches(views: Views, order: torch.utils.data.Sampler[object], workers: int = 0) -> list[Batch]:
    return list(dataset.loader(views, order, workers, pin=False))


def _hashes(batches: list[Batch]) -> list[str]:
    return [hashlib.sha256(b.images.numpy().tobytes() + b.labels.numpy().tobytes()).hexdigest() for b in batches]


def test_workers_change_nothing(data: Data) -> None:
    order = TrainingOrder(20, 4, seed=3, epoch=1, steps=5)
    torch.manual_seed(1)
    alone = _hashes(_batches(_views(data), order))
    torch.manual_seed(2)
    assert _hashes(_batches(_views(data), order, workers=2)) == alone
    assert len(set(alone)) == 5
    # where workers are not forked, as on Windows, macOS and in Python 3.14
    pickle.loads(pickle.dumps((_views(data), order, dataset._start_worker)))


def test_a_later_start_gives_the_rest(data: Data) -> None:
    whole = _hashes(_batches(_views(data), TrainingOrder(20, 4, 0, 2, 5)))
    assert _hashes(_batches(_views(data), TrainingOrder(20, 4, 0, 2, 5, start=3))) == whole[3:]


def test_epochs_and_seeds_differ(data: Data) -> None:
    views = _views(data)
    first = views[Place(0, 7)].view
    assert torch.equal(first, views[Place(0, 7)].view)
    assert not torch.equal(first, views[Place(1, 7)].view)
    assert not torch.equal(first, _views(data, seed=1)[Place(0, 7)].view)
    orders = {tuple(map(tuple, TrainingOrder(20, 4, seed, epoch, 5))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_processes_share_an_epoch_as_one_has_it() -> None:
    together = [sorted(batch) for batch in TrainingOrder(22, 8, 0, 0, 2)]
    parts = [list(TrainingOrder(22, 4, 0, 0, 2, rank=rank, world=2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == together
    numbers = [number for batch in together for _, number in batch]
    assert len(set(numbers)) == 16


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_test_image_is_taken_once(world: int) -> None:
    taken = [n for rank in range(world) for batch in EveryImage(10, 4, rank, world) for _, n in batch]
    assert sorted(taken) == list(range(10))
    assert len(EveryImage(10, 4, limit=2)) == 2


def test_the_test_view_is_the_middle(tmp_path: Path) -> None:
    pixels = numpy.zeros((64, 96, 3), numpy.uint8)
    pixels[16:48, 32:64] = (10, 20, 30)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    view = transforms.centre_view(64, 32)(images.decoded(tmp_path / "x.png"))
    assert view.dtype == torch.uint8
    assert torch.equal(view, torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32))
    assert transforms.centre_view(32, 32)(images.decoded(tmp_path / "x.png"))[:, 16, 16].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("width", "height"), [(50, 40), (1, 400), (400, 1), (3, 3)])
def test_crops_lie_inside_and_have_the_area(width: int, height: int) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = [transforms.crop_box(width, height, generator) for _ in range(300)]
    for left, upper, right, lower in boxes:
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
    if width == 50:
        shares = sorted((right - left) * (lower - upper) / 2000 for left, upper, right, lower in boxes)
        assert shares[0] < 0.15
        assert shares[-1] > 0.8
        assert 0.4 < shares[150] < 0.6
        assert {box[0] for box in boxes} > {0, 5, 10, 20}


def test_half_of_the_crops_are_mirrored(tmp_path: Path) -> None:
    ramp = numpy.tile(numpy.arange(64, dtype=numpy.uint8)[None, :, None] * 4, (64, 1, 3))
    views = [transforms.training_view("pillow", 32, seed)(Image.fromarray(ramp)).int() for seed in range(100)]
    assert 30 < sum(bool(view[0, 16, 2] > view[0, 16, -3]) for view in views) < 70


@pytest.fixture
def damaged(tmp_path: Path) -> Data:
    """Of 20 images number 3 truncated, 4 of another kind, 5 empty, 19 gone; of 10 for the test number 1 broken."""
    found = dataset_folders.read("imagefolder", imagefolder(tmp_path))
    paths = [tmp_path / name for name in found.train.names]
    image(paths[3], 0, 300, 300)
    paths[3].write_bytes(paths[3].read_bytes()[:2000])
    paths[4].write_text("<html>not found</html>")
    paths[5].write_bytes(b"")
    paths[19].unlink()
    (tmp_path / found.val.names[1]).write_bytes(b"GIF89a")
    return found


def test_a_broken_image_is_named_and_the_next_one_fills_in(damaged: Data) -> None:
    views = _views(damaged)
    view, label, broken = views[Place(0, 3)]
    assert [number for number, _ in broken] == [3, 4, 5]
    assert label == damaged.train.labels[6]
    assert view is not None
    assert view.float().std() > 1
    assert all(reason for _, reason in broken)
    assert views[Place(0, 19)].broken == [(19, "missing")]
    assert views[Place(0, 19)].label == damaged.train.labels[0]
    batches = _batches(views, TrainingOrder(20, 4, 0, 0, 5))
    assert all(batch.images.shape == (4, 3, 32, 32) for batch in batches)
    assert {number for batch in batches for number, _ in batch.broken} == {3, 4, 5, 19}


def test_a_broken_test_image_is_left_out(damaged: Data) -> None:
    views = _views(damaged, training=False)
    batches = _batches(views, EveryImage(10, 4))
    assert [len(batch.labels) for batch in batches] == [3, 4, 2]
    assert [number for batch in batches for number, _ in batch.broken] == [1]
    alone = views.collate([views[Place(0, 1)]])
    assert alone.images.shape == (0, 3, 32, 32)
    assert alone.labels.dtype == torch.int64


def test_broken_images_are_counted_once_and_too_many_raise(damaged: Data, tmp_path: Path) -> None:
    broken = Broken(damaged, 0.1)
    broken.add("train", [Failure(3, "torn"), Failure(3, "torn")])
    broken.add("train", [Failure(19, "missing"), Failure(3, "torn")])
    assert len(broken) == 2
    broken.write(tmp_path / "broken.txt")
    names = [str(tmp_path / damaged.train.names[number]) for number in (3, 19)]
    assert (tmp_path / "broken.txt").read_text() == f"{names[0]}: torn\n{names[1]}: missing\n"
    broken.check()
    broken.add("train", [Failure(4, "html")])
    with pytest.raises(UserError, match=r"3 of 20 images for train .* --max-broken 0\.1 .*torn"):
        broken.check()


def test_torchvision_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert transforms.require("pillow").startswith("pillow ")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"torchvision cannot be imported .*--reader pillow does without it"):
        transforms.require("torchvision")


def test_torchvision_serves_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transforms draw from PyTorch's generator; a stand-in does so, too."""
    theirs = types.ModuleType("torchvision.transforms")
    made: list[object] = []

    def crop(size: int, scale: object, ratio: object) -> object:
        made.append((size, scale, ratio))
        return lambda view: view.rotate(int(torch.randint(360, ()))).resize((size, size))

    theirs.RandomResizedCrop, theirs.RandomHorizontalFlip = crop, lambda: lambda view: view
    theirs.Compose = lambda steps: lambda view: steps[1](steps[0](view))
    package = types.ModuleType("torchvision")
    package.transforms, package.__version__ = theirs, "9.9"
    monkeypatch.setitem(sys.modules, "torchvision", package)
    assert transforms.require("torchvision") == "torchvision 9.9"
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=numpy.uint8))
    state = torch.get_rng_state()
    views = [transforms.training_view("torchvision", 32, seed)(picture) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert made[0] == (32, transforms.SCALE, transforms.RATIO)


def _avif(path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, "avif")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)


def _dds(path: Path) -> None:
    """A format of pixels that Pillow does not know."""
    head = struct.pack("<4s7I", b"DDS ", 124, 0x1007, 8, 8, 32, 0, 0)
    path.write_bytes(head + bytes(44) + struct.pack("<2I4s5I", 32, 4, b"XXXX", 0, 0, 0, 0, 0) + bytes(500))


def _odd_exif(path: Path) -> None:
    """A picture on its side, with a unit of resolution that its type cannot hold."""
    entries = struct.pack("<HHLL", 0x0112, 3, 1, 6) + struct.pack("<HHLL", 0x0128, 4, 1, 70000)
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4)
    Image.new("RGB", (40, 40)).save(path, "jpeg", exif=exif)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, struct.error, KeyError, MemoryError, TypeError])
def test_whatever_a_decoder_raises_the_picture_is_broken(
    data: Data, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error("odd")

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert _views(data, training=False)[Place(0, 0)].broken == [(0, f"{error.__name__}: {error('odd')}")]
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: cannot be read: .*odd"):
        images.opened(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("damage", "error"), [(_avif, RuntimeError), (_dds, NotImplementedError), (_odd_exif, struct.error)]
)
def test_files_of_which_pillow_raises_something_else(
    damage: Callable[[Path], None], error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    damage(path)
    with pytest.raises(error), Image.open(path) as file:
        ImageOps.exif_transpose(file).convert("RGB")
    with pytest.raises(UserError, match=r"x\.jpg: cannot be read"):
        images.opened(path)
    with pytest.raises(images.Unreadable, match=error.__name__):
        images.decoded(path, upright=error is struct.error)


def test_long_pictures_need_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60000 x 1 scaled to a shorter side of 256 would be 15 million pixels wide. The middle is what it is elsewhere."""
    resized: list[int] = []
    resize = Image.Image.resize

    def watch(self: Image.Image, size: tuple[int, int], *rest: object, **more: object) -> Image.Image:
        resized.append(size[0] * size[1])
        return resize(self, size, *rest, **more)

    line = numpy.random.default_rng(0).integers(0, 255, (1, 60000, 3), dtype=numpy.uint8)
    Image.fromarray(line).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "resize", watch)
    views = (transforms.centre_view(256, 224), transforms.training_view("pillow", 224, 0))
    for view in views:
        assert view(images.decoded(tmp_path / "x.png")).shape == (3, 224, 224)
    assert max(resized) == 224 * 224
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=numpy.uint8))
    whole = transforms.centre_view(72, 64)(picture).int()
    monkeypatch.setattr(transforms, "MOST_SCALED", 0)
    assert (transforms.centre_view(72, 64)(picture).int() - whole).abs().max() <= 2  # Pillow has a box in float32
    monkeypatch.setattr(images, "MOST_PIXELS", 59_999)
    with pytest.raises(images.Unreadable, match="60000 x 1 pixels, more than 59,999"):
        images.decoded(tmp_path / "x.png")


RAMP = numpy.linspace(0, 1, 256)[None].repeat(4, 0)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("16.png", (RAMP * 65535).astype(numpy.uint16)),
        ("16.tif", (RAMP * 65535).astype(numpy.uint16)),
        ("16.pgm", (RAMP * 65535).astype(numpy.uint16)),
        ("int.tif", (RAMP * 65535).astype(numpy.int32)),
        ("int8.tif", (RAMP * 255).astype(numpy.int32)),
        ("signed.tif", (RAMP * 4000 - 1000).astype(numpy.int32)),
        ("unit.tif", RAMP.astype(numpy.float32)),
        ("byte.tif", (RAMP * 255).astype(numpy.float32)),
        ("any.tif", (RAMP * 3e7 - 1e7).astype(numpy.float32)),
    ],
)
def test_greys_of_more_than_8_bits_are_scaled(name: str, pixels: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    with Image.open(tmp_path / name) as file:
        assert file.mode[0] in "IF"
    found = numpy.asarray(images.decoded(tmp_path / name)).astype(int)
    assert found.shape == (4, 256, 3)
    assert abs(found - numpy.arange(256)[None, :, None]).max() <= 1


def test_greys_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    for filled, expected in ((0.5, 128), (numpy.nan, 0)):
        pixels = numpy.full((4, 4), filled, numpy.float32)
        pixels[0] = numpy.nan, numpy.inf, -numpy.inf, filled
        Image.fromarray(pixels).save(tmp_path / "x.tif")
        found = numpy.asarray(images.decoded(tmp_path / "x.tif"))[..., 0]
        assert found[0].tolist() == [0, 0, 0, expected]
        assert (found[1:] == expected).all()
