"""The weighted kNN vote on frozen features, and its accuracy over all processes.

Training features stay where they are. The queries go round in chunks, each process finds those of
its features that are nearest to them, and what it has found goes back to the queries.
"""

from collections.abc import Iterator
from math import ceil, inf

import torch
import torch.nn.functional as F
from torch import Tensor

from adco.probe.features import BLOCK, Features, blocks, unit_rows
from adco.probe.metrics import Accuracy, accuracies, count_right
from ops.distributed import World, all_to_all_blocks, gather_rows

QUERIES = 1024  # in a chunk, over all processes


def knn_accuracies(
    train: list[Features], val: Features, num_classes: int, ks, tau: float, world: World
) -> list[Accuracy]:
    """Accuracy of the kNN vote for each k, over the val pictures of all processes, exact.

    train, val: this process's shares, directions or unit rows. Every process calls it.
    """
    most = max(ks)
    counts = torch.zeros(len(ks), 3, dtype=torch.long, device=val.labels.device)
    for queries, labels in query_chunks(val, world):
        # Of each process's features the nearest to everyone's queries.
        found = nearest(gather_rows(queries, world), train, most)  # [R C, k]

        # Of what all have found for the queries of this process, the nearest again.
        home = (all_to_all_blocks(x.view(world.size, -1, most), world) for x in found)
        candidates = (x.transpose(0, 1).flatten(1)[: len(labels)] for x in home)  # [n, R k]
        cosine, numbers = largest(*candidates, most)
        for i, k in enumerate(ks):
            votes = knn_votes(cosine[:, :k], numbers[:, :k], num_classes, tau)
            counts[i] += count_right(votes, labels)
    return accuracies(counts, world)


def query_chunks(val: Features, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """(queries [C, d], labels [n], n <= C) of this process, the queries filled up with zeros.

    C is the same on every process, and so is the number of chunks. Waits for the device once.
    """
    count = torch.tensor([len(val.labels)], device=val.labels.device)
    most = int(gather_rows(count, world).max())
    size = max(1, min(most, QUERIES // world.size))
    for start in range(0, most, size):
        rows, labels = (x[start : start + size] for x in val)
        missing = min(size, most - start) - len(rows)
        yield F.pad(unit_rows(rows), (0, 0, 0, missing)), labels


def nearest(queries: Tensor, train: list[Features], k: int) -> tuple[Tensor, Tensor]:
    """Cosines [Q, k] and labels of the features nearest to each query, the nearest first.

    Where there are fewer than k, the others have the cosine -inf: they do not vote.
    """
    cosine = queries.new_full((len(queries), k), -inf)
    labels = torch.zeros_like(cosine, dtype=torch.long)
    for rows, numbers in blocks(*train):
        of_block, place = (queries @ rows.T).topk(min(k, len(rows)), dim=1)
        cosine, labels = torch.cat([cosine, of_block], 1), torch.cat([labels, numbers[place]], 1)
        cosine, labels = largest(cosine, labels, k)
    return cosine, labels


def largest(cosine: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each row, in falling order, and their labels."""
    cosine, place = cosine.topk(k, dim=1)
    return cosine, labels.gather(1, place)


def knn_votes(cosine: Tensor, labels: Tensor, num_classes: int, tau: float) -> Tensor:
    """[n, classes]: each neighbour [n, k], the nearest first, votes with exp(cosine / tau).

    The weighted kNN of Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination. Without any neighbour the votes are nan.
    """
    # Divided by the weight of the nearest: for a small tau the weights themselves are infinite.
    weights = ((cosine - cosine[:, :1]) / tau).exp()
    # Votes for one class add up.
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels, weights)


def bytes_held(num_pictures: int, width: int, world: World) -> int:
    """What a score holds on a process: its share of the features, two blocks, and one chunk.

    num_pictures: of train and val.  width: of the features.
    """
    share = ceil(num_pictures / world.size) * (2 * width + 8)  # directions and labels
    return share + 4 * (2 * BLOCK * width + QUERIES * (2 * width + BLOCK))
