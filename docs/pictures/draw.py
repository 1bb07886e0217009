"""Draws the pictures of how-it-works.md: `python docs/pictures/draw.py`, from the top of the repository.

Each picture carries the hash of what it shows (`digest`), so a test notices one that is out of date.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.bytes_moved import count  # noqa: E402
from ulsam_fused import reference  # noqa: E402
from ulsam_fused.bench.providers import Paper  # noqa: E402
from ulsam_fused.console import images  # noqa: E402
from ulsam_fused.console.picture_features import CHANNELS, features  # noqa: E402

OURS, THEIRS, GREY = "#3f51b5", "#c9cde8", "#777777"
SHAPE = (8, 512, 14, 14)
G = 4


def moved() -> dict[str, list[float]]:
    """Of eager PyTorch, forward and backward: how many operators, and their bytes over the fewest possible."""
    passes = torch.empty(SHAPE, dtype=torch.float16, device="meta").nbytes
    found = {}
    for name, module in (("authors' module", reference.ULSAM(SHAPE[1], G)), ("paper's formula", Paper(SHAPE[1], G))):
        x = torch.empty(SHAPE, dtype=torch.float16, device="meta", requires_grad=True)  # counted, not computed
        counted = count(module.half().to("meta"), x)
        found[name] = [c.operators for c in counted]
        found[name] += [round(c.total / passes / fewest, 1) for c, fewest in zip(counted, (2, 3), strict=True)]
    return found


def steps() -> dict[str, torch.Tensor]:
    """What each step makes of one subspace of a photograph: maps [h, w]."""
    from PIL import Image

    picture = images.pixels(images.opened(images.demo()).crop((90, 0, 430, 340)).resize((192, 192), Image.LANCZOS))
    x = features(picture)[:, CHANNELS // 4 : CHANNELS // 2].double()
    weight = torch.full((x.shape[1],), 1 / x.shape[1], dtype=torch.float64)
    m = torch.nn.functional.max_pool2d(x, 3, 1, 1)
    z = 3 * (m * weight[None, :, None, None]).sum(1)
    a = z.flatten(1).softmax(1).view_as(z)
    y, own = reference.subspace_attention(x, torch.ones_like(weight), 3 * weight, 1, return_attention=True)
    torch.testing.assert_close(own[:, 0], a)
    return {
        "photograph": picture.permute(1, 2, 0),
        "x, one channel of 12": x[0, 3],
        "its 3×3 maxima": m[0, 3],
        "z, weighted sum of all 12": z[0],
        "A, softmax over the map": a[0],
        "y − x = A·x": (y - x)[0, 3],
    }


def draw_steps(figure: Figure) -> None:
    figure.set_size_inches(9, 1.9)
    for axes, (title, values) in zip(figure.subplots(1, 6), steps().items(), strict=True):
        axes.imshow(values.numpy(), cmap="magma")
        axes.set_title(title, fontsize=7.5)
        axes.axis("off")


def draw_march(figure: Figure) -> None:
    """A slab of 7 columns: three rows in registers, one row of windows at a time."""
    figure.set_size_inches(7.5, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    for axes, title in ((left, "the march: rows of x, each read once"), (right, "A and y: a flat sweep, x from cache")):
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlim(-0.2, 12)
        axes.set_ylim(8, -0.4)
        axes.axis("off")
    for row in range(7):
        done, held = row < 2, 2 <= row < 5
        for column in range(7):
            colour = GREY if done else OURS if held else "white"
            left.add_patch(Rectangle((column, row), 0.9, 0.9, facecolor=colour, alpha=0.35 if done else 0.8, ec=GREY))
            right.add_patch(Rectangle((column, row), 0.9, 0.9, facecolor=OURS, alpha=0.15 + 0.1 * ((row + column) % 3)))
    left.add_patch(Rectangle((2, 2), 2.9, 2.9, fill=False, ec="#d84315", lw=2))
    _say(left, 0.9, "behind: summed up\ninto (max, Σ exp)")
    _say(left, 3.5, "three rows in registers\ngive one row of windows,\none row of z")
    _say(left, 6.0, "ahead: not read yet")
    _say(right, 1.5, "A = exp(z − lse)")
    _say(right, 3.5, "y = x + A·x:\none multiply-add")


def _say(axes: Axes, row: float, text: str) -> None:
    axes.text(7.3, row, text, fontsize=8, va="center")


def draw_bytes(figure: Figure) -> None:
    figure.set_size_inches(7.5, 1.7)
    found = moved()
    names = list(found)[::-1]
    titles = ("bytes over the fewest, forward", "and backward")
    for i, (axes, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), titles, strict=True)):
        operators, values = [found[name][i] for name in names], [found[name][2 + i] for name in names]
        bars = axes.barh(names, values, color=THEIRS, height=0.6)
        axes.bar_label(
            bars, [f"{v:g}× in {n} operators" for n, v in zip(operators, values, strict=True)], fontsize=8, padding=2
        )
        axes.axvline(1, color=OURS, linewidth=2)
        axes.text(
            1.2, -0.62, "1: x read, y written" if i == 0 else "1: x and dy read, dx written", fontsize=8, color=OURS
        )
        axes.set_xlim(0, 28)
        axes.set_ylim(-0.8, 1.4)
        axes.set_xticks([])
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8, length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)


PICTURES: dict[str, Callable[[Figure], None]] = {
    "steps.png": draw_steps,
    "march.png": draw_march,
    "bytes.png": draw_bytes,
}


def digest(name: str) -> str:
    """A hash of the code that draws a picture, and of the numbers in it."""
    numbers = json.dumps(moved()) if name == "bytes.png" else ""
    code = "".join(inspect.getsource(part) for part in (PICTURES[name], steps, _say))
    return hashlib.sha256((code + numbers).encode()).hexdigest()


def main() -> None:
    for name, draw in PICTURES.items():
        figure = Figure(layout="constrained", dpi=150)
        draw(figure)
        figure.savefig(HERE / name, metadata={"Drawn from": digest(name), "Software": None})


if __name__ == "__main__":
    main()
