"""The score of a run while it goes on: kNN on the frozen trunk."""

from collections.abc import Callable, Iterator
from math import ceil

from adco.data.loader import CheckViews, check_loader, share_of
from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.probe.features import extract_features
from adco.probe.knn import knn_accuracies
from ops.distributed import World
from ops.workers import workers_per_process


class KnnMonitor:
    """Scores the query encoder's trunk on val, by its labelled training pictures."""

    def __init__(self, game: Game, config: PretrainConfig, world: World, local_size: int):
        self.game, self.config, self.world = game, config, world
        self.images = config.images_per_process(world.size)  # a batch
        self.workers = workers_per_process(config.workers, local_size)

    def score(self, awaited: Callable[[Iterator, int], Iterator]) -> float | None:
        """kNN accuracy, percent; None where there are no labels.

        awaited: hands on the batches; called with as many in every process.
        """
        game, config, splits, world = self.game, self.config, self.game.splits, self.world
        if splits.val is None:
            return None
        # Features of this process's share, first of train, then of val.
        shares = []
        for pictures in (splits.labelled, splits.val):
            skip_broken = config.bad_images == "skip"
            views = CheckViews(pictures, config.image_size, skip_broken, whole=not config.eval_crop)
            loader = check_loader(views, self.images, self.workers, world)
            # Other processes may have one batch more.
            longest = ceil(ceil(len(pictures) / world.size) / self.images)
            batches = awaited(iter(loader), longest)
            encoder, number = game.model.encoder_q, len(share_of(pictures, world))
            shares.append(extract_features(encoder, batches, number))
        train, val = shares
        num_classes = len(splits.labelled.classes)
        score = knn_accuracies([train], val, num_classes, [config.knn_k], config.knn_t, world)
        return score[0].acc1
