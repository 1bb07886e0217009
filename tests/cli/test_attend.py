"""`ulsam-fused attend`: the figure has a panel for each subspace, and says what the maps really are."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ulsam_fused import cli
from ulsam_fused.cli import attend
from ulsam_fused.console import drawing, images, network_maps, picture_features
from ulsam_fused.models import MobileNet, mobilenet_v1, mobilenet_v2


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


@pytest.mark.slow  # draws two pictures
@pytest.mark.parametrize("num_splits", [1, 4])
def test_attend_draws_a_panel_for_each_subspace_and_prints_what_the_maps_really_are(
    num_splits: int, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    words = ["attend", str(picture), "-o", str(out), "--num-splits", str(num_splits), "--size", "128"]
    assert cli.main([*words, "--backend", "torch", "--device", "cpu"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines[-1] == str(out)
    assert lines[0] == f"picture 128 x 96, {num_splits} maps of 32 x 24, backend torch on cpu"
    assert "untrained" in lines[1]
    found = panels(out)
    assert len(found) == num_splits + 1
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            width = min(one.shape[1], other.shape[1])
            assert abs(one[:, :width] - other[:, :width]).max() > 0.3  # of 1
    maps = attend.attend(attend.read(picture, 128), num_splits, 0, "reference")
    assert maps.sum((1, 2)).tolist() == pytest.approx([1.0] * num_splits, abs=1e-5)
    for line, a in zip(lines[3 : 3 + num_splits], maps, strict=True):
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
        a = maps[picture_features.FAMILIES.index(family)]
        at = int(a.argmax())
        row, column = at // w * picture_features.STRIDE, at % w * picture_features.STRIDE
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


def test_a_name_of_weights_is_neither_mathematics_nor_always_text(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"\xe9.png")
    out.write_bytes(b"old")
    name = os.fsdecode(b"br\xe9ken $x^$.pth")
    drawing.draw(torch.zeros(3, 8, 8), [drawing.Panel("a", torch.zeros(2, 2))], f"weights of {name}", out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow  # draws a picture
def test_demo_needs_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo.png"
    assert cli.main(["attend", "--demo", "--size", "96", "-o", str(out), "--device", "cpu"]) == 0
    assert len(panels(out)) == 5
    assert capsys.readouterr().out.splitlines()[-1] == str(out)


def brightness_detector(**options: Any) -> MobileNet:
    """A network whose ULSAM after the stem looks where the picture is bright, and nowhere else."""
    model = mobilenet_v1(0.25, insert={1: 2}, num_classes=3, **options)
    with torch.no_grad():
        model.features[0][0].weight.fill_(1 / 27)
        model.features[0][1].running_var.fill_(2.0)  # not the picture's
        (layer,) = model.attention_layers().values()
        for name, p in layer.named_parameters():
            p.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


@pytest.fixture
def spot(tmp_path: Path) -> Path:
    """A wide dark picture, 400x200, with a bright spot of 16x16 at row 140, column 260."""
    from PIL import Image

    pixels = torch.zeros(200, 400, 3, dtype=torch.uint8)
    pixels[132:148, 252:268] = 255
    Image.fromarray(pixels.numpy()).save(tmp_path / "spot.png")
    return tmp_path / "spot.png"


SPOT = (140 * 1.28 - 16, 260 * 1.28 - 144)
"""Its row and column in the crop: scaled by 256/200, less the border."""

DETECTOR = ("--model", "mobilenet_v1", "--insert", "1=2", "--width", "0.25", "--device", "cpu", "--backend", "torch")


def test_crop_is_the_middle_of_the_scaled_picture(tmp_path: Path) -> None:
    from PIL import Image

    for size in ((400, 200), (333, 517), (256, 256), (100, 90)):
        image = Image.fromarray(torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8).numpy())
        image.save(tmp_path / "noise.png")
        width, height = (side * 256 // min(size) for side in size)
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        expected = images.pixels(whole.crop((left, top, left + 224, top + 224)))
        found = images.centre(tmp_path / "noise.png")
        assert found.shape == (3, 224, 224)
        assert (found - expected).abs().max() <= 1.01 / 255
    grey = images.normalised(torch.tensor([0.485, 0.456 + 0.224, 0.406 - 0.225]).view(3, 1, 1))
    torch.testing.assert_close(grey.flatten(), torch.tensor([0.0, 1.0, -1.0]))


def test_an_enlarged_map_covers_the_picture() -> None:
    strength = torch.zeros(7, 7)
    strength[0, 6] = 1
    shown = drawing.enlarged(strength, 224, 224)
    assert shown[:16, -16:].min() == 1
    assert shown[48:].max() == shown[:, :176].max() == 0


@pytest.mark.slow  # draws two pictures
@pytest.mark.parametrize(("attention", "wrapped"), [("paper", False), ("upstream", True)])
def test_a_networks_maps_lie_over_what_it_saw(
    attention: str, wrapped: bool, spot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = brightness_detector(attention=attention).state_dict()
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "net.pth")
    out = tmp_path / "out.png"
    words = [*DETECTOR, "--attention", attention, "--checkpoint", str(tmp_path / "net.pth"), "-o", str(out)]
    assert cli.main(["attend", str(spot), *words]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert "ULSAM after layer 1 (g=2)" in lines[0]
    assert lines[1] == "weights of net.pth"
    assert [line.split()[:5] for line in lines[4:6]] == [["1", "112", "x", "112", str(k)] for k in range(2)]
    model = brightness_detector(attention=attention).eval()
    maps = network_maps.maps_of(model, images.normalised(images.centre(spot)), "reference")
    assert [float(line.split()[5]) for line in lines[4:6]] == pytest.approx(
        [drawing.peak(a) for a in maps[1]], abs=0.006
    )
    found = panels(out)
    assert len(found) == 3
    for panel in found[1:]:
        hot = panel[..., 0] - panel[..., 2] / 2  # inferno: bright is red and yellow
        rows, columns = hot.shape
        row, column = divmod(int(hot.argmax()), columns)
        assert abs(column / columns - SPOT[1] / 224) < 0.05
        assert row > rows / 2


def test_maps_of_a_network_are_those_of_its_layers(spot: Path) -> None:
    model = brightness_detector().eval()
    x = images.normalised(images.centre(spot))
    maps = network_maps.maps_of(model, x, "torch")
    assert list(maps) == [1]
    torch.testing.assert_close(maps[1], model.attention_maps(x[None])[1][0])
    at = int(maps[1][0].argmax())
    assert abs(at // 112 * 2 - SPOT[0]) < 12
    assert abs(at % 112 * 2 - SPOT[1]) < 12
    assert network_maps.spread(maps[1][0]).aminmax() == (0, 1)
    assert not network_maps.spread(torch.full((7, 7), 1 / 49)).any()


@pytest.mark.slow  # draws three pictures
def test_without_a_checkpoint_the_weights_are_random_and_say_so(
    spot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    words = ["--model", "mobilenet_v2", "--insert", "17=2", "--replace", "14=1", "--width", "0.25", "-o", str(out)]
    printed = []
    for seed in ("0", "0", "1"):
        assert cli.main(["attend", str(spot), *words, "--device", "cpu", "--seed", seed]) == 0
        printed.append(capsys.readouterr().out)
    lines = lines_of(printed[0])
    assert lines[1].startswith("UNTRAINED: all weights are random (seed 0)")
    assert [line.split()[0] for line in lines[4:7]] == ["14", "17", "17"]
    assert all(float(line.split()[5]) > 1.05 for line in lines[4:7])  # max*H*W: not a uniform map
    assert len(panels(out)) == 4
    assert printed[0] == printed[1]
    assert lines_of(printed[2])[4:7] != lines[4:7]


@pytest.mark.slow  # draws a picture
def test_a_checkpoint_of_the_backbone_leaves_ulsams_random_and_says_so(
    spot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(mobilenet_v2(0.25, num_classes=7).state_dict(), tmp_path / "backbone.pth")
    words = ["--model", "mobilenet_v2", "--insert", "5=2", "--replace", "14=1", "--width", "0.25", "--device", "cpu"]
    words += ["--checkpoint", str(tmp_path / "backbone.pth"), "-o", str(tmp_path / "o.png")]
    assert cli.main(["attend", str(spot), *words]) == 0
    line = lines_of(capsys.readouterr().out)[1]
    assert line == "weights of backbone.pth, but the ULSAM of layers 5, 14 is not in it: UNTRAINED, random (seed 0)"


def _checkpoint(path: Path, kind: str) -> str:
    """Write a file that is no checkpoint of the detector; what the complaint must say."""
    state = brightness_detector().state_dict()
    if kind == "missing":
        return "no such file"
    if kind == "folder":
        path.mkdir()
        return "is a folder"
    if kind == "text":
        path.write_text("not a checkpoint")
        return "not a checkpoint of tensors alone, or a damaged one"
    if kind == "empty":
        path.write_bytes(b"")
        return "not a checkpoint of tensors alone, or a damaged one"
    if kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
        return "not a checkpoint of tensors alone, or a damaged one"
    if kind == "object":
        torch.save({"model": brightness_detector()}, path)
        return "not a checkpoint of tensors alone"
    if kind == "numbers":
        torch.save({"epoch": 3}, path)
        return "holds no state dict"
    if kind == "other network":
        torch.save({"fc.weight": torch.ones(3, 3)}, path)
        return "holds no weights of a MobileNet: classifier.1.weight is not there"
    if kind == "other places":
        torch.save(mobilenet_v1(0.25, insert={3: 2}, num_classes=3).state_dict(), path)
        return "the file has, and this model has not, features.2.ulsam.dw_weight, features.2.ulsam.pw_weight"
    if kind == "half a ulsam":
        torch.save({name: t for name, t in state.items() if "dw_weight" not in name}, path)
        return "the file lacks features.0.ulsam.dw_weight"
    if kind == "half a backbone":
        torch.save({name: t for name, t in state.items() if "features.5." not in name}, path)
        return "the file lacks features.5.conv.0.0.weight, features.5.conv.0.1.bias, features.5.conv.0.1.num_ba"
    if kind == "other width":
        torch.save(mobilenet_v1(0.5, insert={1: 2}, num_classes=3).state_dict(), path)
        return "size mismatch for features.0.0.weight"
    assert kind == "not finite"
    state["features.0.0.weight"].fill_(math.nan)
    torch.save(state, path)
    return "the maps of layer 1 are not finite"


@pytest.mark.parametrize(
    "kind",
    ["missing", "folder", "text", "empty", "truncated", "object", "numbers", "other network", "other places",
     "half a ulsam", "half a backbone", "other width", "not finite"],
)  # fmt: skip
def test_what_is_no_checkpoint_of_the_model_is_refused(
    kind: str, spot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = _checkpoint(tmp_path / "net.pth", kind)
    words = [*DETECTOR, "--checkpoint", str(tmp_path / "net.pth"), "-o", str(tmp_path / "o.png")]
    assert cli.main(["attend", str(spot), *words]) == 2
    printed = capsys.readouterr().err
    assert part in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--checkpoint", "x.pth"], "--checkpoint needs --model"),
        (["--insert", "17=4"], "--insert needs --model"),
        (["--model", "mobilenet_v2"], "--model without ULSAM has no maps"),
        (["--model", "mobilenet_v2", "--insert", "17=4", "--num-splits", "4"], "are for the filters"),
        (["--model", "mobilenet_v2", "--insert", "17=4", "--size", "96"], "are for the filters"),
        (["--model", "mobilenet_v2", "--insert", "17=3"], "160 is not divisible by 3"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attend", "--demo", *words]) == 2
    assert part in capsys.readouterr().err
