"""The kNN vote over processes that share the features: exact, and within its memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adco.probe import features
from adco.probe.features import Features, directions, unit_rows
from adco.probe.knn import knn_accuracies, nearest
from adco.probe.metrics import Accuracy, count_right
from ops.device import peak_memory
from ops.distributed import World
from tests.support.gloo import in_processes

KS, TAU, CLASSES = (1, 5, 20, 400), 0.1, 7
# Pictures of train, of the held-out part and of val. One: of three processes two have none.
SIZES = {"chunks": (1500, 200, 1300), "few": (250, 30, 40), "one": (1, 1, 1), "none": (0, 0, 9)}


def noisy(num: int, seed: int, dim: int = 16) -> Features:
    """Features of one direction a class, under noise."""
    rng = np.random.default_rng((num, seed))
    labels = rng.integers(CLASSES, size=num)
    rows = np.eye(CLASSES, dim)[labels] + 0.5 * rng.standard_normal((num, dim))
    return Features(directions(torch.tensor(rows)), torch.tensor(labels))


def parts(name: str) -> list[Features]:
    return [noisy(num, seed) for seed, num in enumerate(SIZES[name])]


def share(of_all: Features, world: World) -> Features:
    return Features(*(x[world.rank :: world.size] for x in of_all))


def scores(world: World) -> dict:
    features.BLOCK = 400  # of this process, which does nothing else: several blocks a share
    found = {}
    for name in SIZES:
        train, held_out, val = (share(part, world) for part in parts(name))
        for shares in ([train], [train, held_out]):
            right = knn_accuracies(shares, val, CLASSES, KS, TAU, world)
            found[name, len(shares)] = [tuple(accuracy) for accuracy in right]
    return found


def plain(train: list[Features], val: Features, k: int, tau: float = TAU) -> Accuracy:
    """The vote by its definition, with every cosine at once."""
    queries = unit_rows(val.rows)
    cosine = torch.cat([queries @ unit_rows(part.rows).T for part in train], dim=1)
    labels = torch.cat([part.labels for part in train])
    cosine, place = cosine.topk(min(k, len(labels)), dim=1)
    votes = torch.zeros(len(val.rows), CLASSES)
    votes.scatter_add_(1, labels[place], (cosine / tau).exp())
    return Accuracy(*count_right(votes, val.labels).tolist())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_vote_is_the_plain_one_on_any_number_of_processes(size):
    ranks = in_processes(scores, size)
    for name in ("chunks", "few", "one"):
        train, held_out, val = parts(name)
        for shares in ([train], [train, held_out]):
            expected = [plain(shares, val, k) for k in KS]
            assert all(rank[name, len(shares)] == expected for rank in ranks), name
            assert name == "one" or 0.5 < expected[1].right1 / len(val.labels) < 1


def test_one_product_serves_every_k(monkeypatch):
    asked = []

    def counted(queries, train, k):
        asked.append(k)
        return nearest(queries, train, k)

    monkeypatch.setattr("adco.probe.knn.nearest", counted)
    train, _, val = parts("chunks")
    assert len(knn_accuracies([train], val, CLASSES, KS, TAU, World())) == 4
    assert asked == [400, 400]  # once a chunk of queries


def test_without_training_pictures_all_queries_count_as_wrong():
    assert scores(World())["none", 1] == [Accuracy(0, 0, 9)] * len(KS)


def test_a_small_temperature_leaves_the_nearest_alone():
    train, _, val = parts("few")
    found = knn_accuracies([train], val, CLASSES, (1, 100), 1e-4, World())
    assert found[1].right1 == found[0].right1


def test_two_bytes_a_number_change_no_cosine_by_more_than_one_in_ten_thousand():
    rows = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1, 5] = 0, float("nan")
    found, exact = unit_rows(directions(rows)), F.normalize(rows, dim=1)
    assert not found[:2].any()
    assert (found @ found.T - exact @ exact.T)[2:, 2:].abs().max() < 1e-4
    assert (found.norm(dim=1)[2:] - 1).abs().max() < 1e-6


# ---- memory

DIM, NUM_TRAIN, NUM_QUERIES = 1024, 160_000, 512
CPU = torch.device("cpu")


def in_place(num: int, seed: int) -> Features:
    """Features that never took more memory than they have now."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(num, DIM, dtype=torch.int16)
    for block in rows.split(1000):
        block.copy_(directions(torch.randn(block.shape, generator=generator)))
    return Features(rows, torch.randint(CLASSES, (num,), generator=generator))


def measured(world: World) -> tuple[int, tuple, tuple]:
    """By how much a score raises the peak of this process, its features included; the score of all
    queries, and the plain one of those that are here.
    """
    before = peak_memory(CPU)
    train = in_place(NUM_TRAIN // world.size, world.rank)
    val = in_place(NUM_QUERIES // world.size, 10 + world.rank)
    (found,) = knn_accuracies([train], val, CLASSES, (200,), TAU, world)
    rise = peak_memory(CPU) - before
    other = in_place(NUM_TRAIN // world.size, 1 - world.rank)
    return rise, tuple(found), tuple(plain([train, other], val, 200))


def test_a_process_holds_two_bytes_a_number_of_its_share_and_little_else():
    ranks = in_processes(measured, 2)
    held = (NUM_TRAIN + NUM_QUERIES) // 2 * DIM * 2  # bytes
    assert all(rise < held + 0.2e9 for rise, _, _ in ranks), ranks
    expected = [sum(counts) for counts in zip(*(counts for _, _, counts in ranks), strict=True)]
    assert all(list(found) == expected for _, found, _ in ranks)
