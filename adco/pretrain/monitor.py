"""The score of a run while it goes on: of the frozen trunk, with labels or without."""

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np

from adco.data.datasets import MOST_HELD_OUT, sample_of
from adco.data.loader import share_of
from adco.data.pictures import Pictures
from adco.pretrain.game import Game
from adco.probe.data import scoring_loader
from adco.probe.features import Features, effective_rank, extract_features
from adco.probe.knn import knn_accuracies

# Of each kind of score: its name in a record, its title, its unit.
SCORES = {"knn": ("accuracy", "kNN accuracy", " %"), "rank": ("rank", "effective rank", "")}


def score_trunk(game: Game, awaited: Callable[[Iterator, int], Iterator]) -> float | None:
    """Of the query encoder, in the way that the game's pictures allow: kNN accuracy in percent, or
    the effective rank; None where neither is taken.

    awaited: hands on the batches; called with as many in every process.
    """
    config, world, splits = game.config, game.world, game.splits

    def features(pictures: Pictures, unit: bool = True) -> Features:
        """Those of this process's share of the pictures; unit: their directions alone."""
        loader = scoring_loader(pictures, config, world, config.bad_images == "skip")
        # Other processes may have one batch more.
        longest = ceil(ceil(len(pictures) / world.size) / config.images_per_process(world.size))
        batches, number = awaited(iter(loader), longest), len(share_of(pictures, world))
        return extract_features(game.model.encoder_q, batches, number, unit=unit)

    if game.monitor == "knn":
        train, val = features(splits.labelled), features(splits.val)
        num_classes = len(splits.labelled.classes)
        score = knn_accuracies([train], val, num_classes, [config.knn_k], config.knn_t, world)
        return score[0].acc1
    if game.monitor == "rank":
        chosen = sample_of(splits.val, config.seed, MOST_HELD_OUT)
        sample = splits.val.part(np.sort(chosen))
        return effective_rank(features(sample, unit=False).rows, world)
    return None
