"""What `bench` times of a layer, by the names that rows have, and the fewest bytes that each has to move."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Direction:
    """The ceiling moves these bytes by copies of x (2 passes over a tensor of its size) and sums of x and dy (3)."""

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
    # Batch statistics need sums over the batch, and what follows waits for them, so x is read once in each of three
    # phases. Forward, 4 passes: x for its moments; x for the moments of the logits; x and y. Backward, 6: x and dy for
    # the sums of dl; x for the sums of du; x, dy and dx.
    "train-norm": Direction(2, 2),
}
DEFAULT = ("forward", "forward+backward", "train-norm")
"""Inference and training; "backward" alone is a part of training."""

NAMED = {"upstream-eval": "forward", "upstream-train": "train-norm"}
"""Values of --case that compare the authors' form alone, compiled too, at all sizes in one direction."""
