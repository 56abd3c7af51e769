"""What the frozen trunk is worth: features, and the weighted kNN score."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adco.encoder import Trunk
from ops.distributed import World, gather_uneven_rows, sum_across_ranks_


class Features(NamedTuple):
    rows: Tensor  # [n, d]  unit length
    labels: Tensor  # [n] int64


@torch.inference_mode()
def extract_features(encoder, loader, device) -> Features:
    """Trunk features of all pictures of a loader of (pictures, labels), BatchNorm in eval mode.

    Leaves the encoder in the mode it was in.
    """
    trunk = Trunk(encoder)
    was_training = encoder.training
    encoder.eval()
    rows, labels = [], []
    for pictures, numbers in loader:
        features = trunk(pictures.to(device, non_blocking=True)).float()
        rows.append(F.normalize(features, dim=1))
        labels.append(numbers.to(device, non_blocking=True))
    encoder.train(was_training)
    return Features(torch.cat(rows), torch.cat(labels))


def knn_votes(
    queries: Tensor, train: Features, num_classes: int, k: int = 200, tau: float = 0.07
) -> Tensor:
    """Class votes [n, classes]: each of the k nearest train features votes with exp(cosine /
    tau).
    """
    k = min(k, len(train.rows))
    cosine, nearest = (queries @ train.rows.T).topk(k, dim=1)  # [n, k]
    votes = torch.zeros(len(queries), num_classes, device=queries.device)
    return votes.scatter_add_(1, train.labels[nearest], (cosine / tau).exp())


def knn_accuracy(
    train: Features, val: Features, world: World, k: int = 200, tau: float = 0.07
) -> float:
    """Share of val pictures of all processes whose kNN vote is right, exact.

    train, val: this process's shares. Every picture counts once, whatever the number of processes.
    """
    train = Features(gather_uneven_rows(train.rows, world), gather_uneven_rows(train.labels, world))
    num_classes = int(train.labels.max()) + 1
    counts = torch.zeros(2, dtype=torch.long, device=val.labels.device)  # right, all
    for rows, labels in zip(val.rows.split(1024), val.labels.split(1024), strict=True):
        guesses = knn_votes(rows, train, num_classes, k, tau).argmax(dim=1)
        counts += torch.stack(
            [(guesses == labels).sum(), torch.tensor(len(labels), device=labels.device)]
        )
    right, total = sum_across_ranks_(counts, world).tolist()
    return right / total
