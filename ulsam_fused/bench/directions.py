"""What `bench` times of a layer, and the fewest bytes that each takes. The names are those of the rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Direction:
    """Its bytes as a ceiling moves them: copies of x (2 passes over a tensor of its size), and sums of x and dy (3)."""

    copies: int
    adds: int

    @property
    def passes(self) -> int:
        return 2 * self.copies + 3 * self.adds

    @property
    def ceiling(self) -> str:
        """The name of the ceiling's row."""
        counted = ((self.copies, "copy", "copies"), (self.adds, "add", "adds"))
        return " + ".join(one if count == 1 else f"{count} {many}" for count, one, many in counted if count)


DIRECTIONS = {
    "forward": Direction(1, 0),
    "backward": Direction(0, 1),
    "forward+backward": Direction(1, 1),
    # Batch statistics cut either half into three phases, each of which waits for sums over the batch. 4 passes forward:
    # x for its moments; x for the logits'; x, y. 6 backward: x, dy for the sums of dl; x for those of du; x, dy, dx.
    "train-norm": Direction(2, 2),
}
CHOICES = {  # of --direction, and what each measures
    **{name: (name,) for name in DIRECTIONS},
    "step": ("forward+backward",),  # its name before rows were published
    "both": ("forward", "forward+backward", "train-norm"),
    "all": tuple(DIRECTIONS),
}
NAMED = {"upstream-eval": "forward", "upstream-train": "train-norm"}
"""Cases that compare the authors' form alone, compiled too, at all sizes."""
