"""Accuracies as counts: integers that processes sum exactly, and that are divided once."""

from typing import NamedTuple

import torch
from torch import Tensor

from ops.distributed import World, sum_across_ranks_


class Accuracy(NamedTuple):
    """How many of `total` pictures have their label first, and among the first five."""

    right1: int
    right5: int
    total: int

    @property
    def acc1(self) -> float:
        """Percent."""
        return 100 * self.right1 / max(1, self.total)

    @property
    def acc5(self) -> float:
        """Percent."""
        return 100 * self.right5 / max(1, self.total)

    def percent(self) -> dict[str, float]:
        return {"acc1": self.acc1, "acc5": self.acc5}

    def __str__(self) -> str:
        counts = f"({self.right1} and {self.right5} of {self.total})"
        return f"Acc@1 {self.acc1:.3f} Acc@5 {self.acc5:.3f} {counts}"


def count_right(scores: Tensor, labels: Tensor) -> Tensor:
    """[3] int64: how many labels are first, how many are among the first five, and how many are.

    scores [n, classes], labels [n]. A row with a nan counts as wrong.
    """
    # With fewer than five classes every label is among the first five.
    guesses = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hits = (guesses == labels[:, None]) & ~scores.isnan().any(dim=1, keepdim=True)  # [n, 5]
    total = hits.new_full((), len(labels), dtype=torch.long)
    return torch.stack([hits[:, 0].sum(), hits.sum(), total])


def accuracies(counts: Tensor, world: World) -> list[Accuracy]:
    """One accuracy for each row of counts [h, 3] int64, over the pictures of all processes."""
    return [Accuracy(*row) for row in sum_across_ranks_(counts.clone(), world).tolist()]


def best_index(found: list[Accuracy]) -> int:
    """Position of the first one with the most pictures right."""
    return max(range(len(found)), key=lambda i: found[i].right1)
