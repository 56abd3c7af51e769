"""The weighted kNN vote on frozen features, and its accuracy over all processes."""

import torch
from torch import Tensor

from adco.probe.features import Features, gather_features
from ops.distributed import World
from ops.metrics import Accuracy, accuracies, count_right


def knn_votes(
    queries: Tensor, train: Features, num_classes: int, k: int = 200, tau: float = 0.07
) -> Tensor:
    """[n, classes]: each of the k nearest training features votes with exp(cosine / tau).

    queries [n, d] and the training features have unit length. k and tau are those of the weighted
    kNN of Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination.
    """
    k = min(k, len(train.rows))
    cosine, nearest = (queries @ train.rows.T).topk(k, dim=1)  # [n, k]
    # Votes for one class add up.
    votes = queries.new_zeros(len(queries), num_classes)
    return votes.scatter_add_(1, train.labels[nearest], (cosine / tau).exp())


def knn_accuracies(
    train: Features, val: Features, num_classes: int, ks, world: World, tau: float = 0.07
) -> list[Accuracy]:
    """Accuracy of the kNN vote for each k, over the val pictures of all processes, exact.

    train: the features of all processes. val: this process's share.
    """
    counts = torch.zeros(len(ks), 3, dtype=torch.long, device=val.labels.device)
    # In batches: the cosines with all of ImageNet would not fit into memory at once.
    for rows, labels in val.batches():
        for i, k in enumerate(ks):
            counts[i] += count_right(knn_votes(rows, train, num_classes, k, tau), labels)
    return accuracies(counts, world)


def knn_accuracy(
    train: Features, val: Features, world: World, k: int = 200, tau: float = 0.07
) -> float:
    """Share of the val pictures of all processes whose kNN vote is right, exact.

    train, val: this process's shares. Every picture counts once, whatever the number of processes.
    The result is 0 where there are no training pictures.
    """
    train = gather_features(train, world)
    if len(train.labels) == 0:
        return 0.0
    num_classes = int(train.labels.max()) + 1
    return knn_accuracies(train, val, num_classes, (k,), world, tau)[0].acc1 / 100
