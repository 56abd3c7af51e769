"""What the frozen trunk is worth: features, and the weighted kNN score."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adco.encoder import Trunk
from ops.distributed import World, gather_uneven_rows
from ops.metrics import Accuracy, accuracies, count_right


class Features(NamedTuple):
    rows: Tensor  # [n, d]
    labels: Tensor  # [n] int64

    def batches(self, size: int = 1024):
        """(rows [size, d], labels [size]) in order; the last batch may be smaller."""
        return zip(self.rows.split(size), self.labels.split(size), strict=True)


@torch.no_grad()
def extract_features(encoder, loader, device, unit: bool = True) -> Features:
    """Trunk features of all pictures of a loader of (pictures, labels), BatchNorm in eval mode.

    Batches may be empty, where broken pictures are left out.
    unit: divided by their length.  Leaves the encoder in the mode it was in.
    """
    trunk = Trunk(encoder)
    was_training = encoder.training
    encoder.eval()
    rows, labels = [], []
    for pictures, numbers in loader:
        features = trunk(pictures.to(device, non_blocking=True)).float()
        rows.append(F.normalize(features, dim=1) if unit else features)
        labels.append(numbers.to(device, non_blocking=True))
    encoder.train(was_training)
    return Features(torch.cat(rows), torch.cat(labels))


def knn_votes(
    queries: Tensor, train: Features, num_classes: int, k: int = 200, tau: float = 0.07
) -> Tensor:
    """Class votes [n, classes]: each of the k nearest train features gives exp(cosine / tau)."""
    k = min(k, len(train.rows))
    cosine, nearest = (queries @ train.rows.T).topk(k, dim=1)  # [n, k]
    votes = queries.new_zeros(len(queries), num_classes)
    return votes.scatter_add_(1, train.labels[nearest], (cosine / tau).exp())


def gather_features(share: Features, world: World) -> Features:
    """Features of all processes in the order of the pictures.

    Process r holds pictures r, r + R, r + 2R, ...; where broken ones are left out, the order is
    nearly that.
    """
    rows, labels = (gather_uneven_rows(part, world) for part in share)
    held = torch.cat([torch.arange(r, len(labels), world.size) for r in range(world.size)])
    order = torch.argsort(held).to(labels.device)
    return Features(rows[order], labels[order])


def knn_accuracies(
    train: Features, val: Features, num_classes: int, ks, world: World, tau: float = 0.07
) -> list[Accuracy]:
    """Accuracy of the kNN vote for each k, over the val pictures of all processes, exact.

    train: of all processes.  val: this process's share.
    """
    counts = torch.zeros(len(ks), 3, dtype=torch.long, device=val.labels.device)
    for rows, labels in val.batches():
        for i, k in enumerate(ks):
            counts[i] += count_right(knn_votes(rows, train, num_classes, k, tau), labels)
    return accuracies(counts, world)


def knn_accuracy(
    train: Features, val: Features, world: World, k: int = 200, tau: float = 0.07
) -> float:
    """Share of val pictures of all processes whose kNN vote is right, exact.

    train, val: this process's shares. Every picture counts once, whatever the number of processes.
    0 where there is nothing to learn from.
    """
    train = gather_features(train, world)
    if len(train.labels) == 0:
        return 0.0
    num_classes = int(train.labels.max()) + 1
    return knn_accuracies(train, val, num_classes, (k,), world, tau)[0].acc1 / 100
