"""The score of a run while it goes on: kNN on the frozen trunk."""

from collections.abc import Callable, Iterator
from math import ceil

from adco.data.loader import CheckViews, check_loader
from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.probe.features import extract_features
from adco.probe.knn import knn_accuracy
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
        game, config, splits = self.game, self.config, self.game.splits
        if splits.val is None:
            return None
        features = []
        # Features of this process's share, first of train, then of val.
        for pictures in (splits.labelled, splits.val):
            skip_broken = config.bad_images == "skip"
            views = CheckViews(pictures, config.image_size, skip_broken, whole=not config.eval_crop)
            loader = check_loader(views, self.images, self.workers, self.world)
            # Other processes may have one batch more.
            longest = ceil(ceil(len(pictures) / self.world.size) / self.images)
            batches = awaited(iter(loader), longest)
            features.append(extract_features(game.model.encoder_q, batches, game.device))
        return 100 * knn_accuracy(*features, self.world)
