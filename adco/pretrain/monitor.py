"""The score of a run while it goes on: of the frozen trunk, with labels or without."""

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np

from adco.data.datasets import MOST_HELD_OUT, sample_of
from adco.data.loader import CheckViews, check_loader, share_of
from adco.data.pictures import Pictures
from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.probe.features import Features, extract_features
from adco.probe.knn import knn_accuracies
from adco.probe.rank import effective_rank
from ops.distributed import World
from ops.workers import workers_per_process

# Of each kind of score: its name in a record, its title, its unit.
SCORES = {"knn": ("accuracy", "kNN accuracy", " %"), "rank": ("rank", "effective rank", "")}


class Monitor:
    """Scores the query encoder's trunk on val, in the way that the game's pictures allow."""

    def __init__(self, game: Game, config: PretrainConfig, world: World):
        self.game, self.config, self.world, self.kind = game, config, world, game.monitor
        self.images = config.images_per_process(world.size)  # a batch
        self.workers = workers_per_process(config.workers, world.local_size)

    def score(self, awaited: Callable[[Iterator, int], Iterator]) -> float | None:
        """kNN accuracy in percent, or the effective rank; None where neither is taken.

        awaited: hands on the batches; called with as many in every process.
        """
        config, splits, world = self.config, self.game.splits, self.world
        if self.kind == "knn":
            train, val = (self.features(p, awaited) for p in (splits.labelled, splits.val))
            num_classes = len(splits.labelled.classes)
            score = knn_accuracies([train], val, num_classes, [config.knn_k], config.knn_t, world)
            return score[0].acc1
        if self.kind == "rank":
            chosen = sample_of(splits.val, config.seed, MOST_HELD_OUT)
            sample = splits.val.part(np.sort(chosen))
            return effective_rank(self.features(sample, awaited, unit=False).rows, world)
        return None

    def features(self, pictures: Pictures, awaited, unit: bool = True) -> Features:
        """Those of this process's share of the pictures; unit: their directions alone."""
        config, world = self.config, self.world
        skip_broken = config.bad_images == "skip"
        views = CheckViews(pictures, config.image_size, skip_broken, whole=not config.eval_crop)
        loader = check_loader(views, self.images, self.workers, world)
        # Other processes may have one batch more.
        longest = ceil(ceil(len(pictures) / world.size) / self.images)
        batches = awaited(iter(loader), longest)
        encoder, number = self.game.model.encoder_q, len(share_of(pictures, world))
        return extract_features(encoder, batches, number, unit=unit)
