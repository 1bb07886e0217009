"""Loss, top-1 and top-5 accuracy, summed on the device of the logits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Means over images; accuracies in percent."""

    images: int
    loss: float
    top1: float
    top5: float


class Totals:
    """Running sums, float64 [4]: loss, top-1 hits, top-5 hits, images. Adding to them does not wait for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """mean_loss of one element, logits [n, classes], labels [n]."""
        ranking = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = (ranking == labels[:, None]) & logits.isfinite().all(1, keepdim=True)  # NaN is no answer
        values = (mean_loss.double() * len(labels), hits[:, :1].sum(), hits.sum())
        self.sums[:3] += torch.stack([value.double() for value in values])
        self.sums[3] += len(labels)


def scores(sums: Tensor) -> Scores:
    """The means of `Totals.sums`; all 0 for no images."""
    loss, top1, top5, images = sums.tolist()
    n = max(images, 1)
    return Scores(int(images), loss / n, 100 * top1 / n, 100 * top5 / n)
