"""The score of a run while it goes on: kNN on the frozen trunk."""

from collections.abc import Callable, Iterable, Iterator
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
        self.images = config.images_per_process(local_size)  # a batch
        self.workers = workers_per_process(config.workers, local_size)

    def score(self, after_batch: Callable[[], None]) -> float | None:
        """kNN accuracy, percent; None where there are no labels.

        after_batch: called after each batch, equally often in every process.
        """
        game, config, splits = self.game, self.config, self.game.splits
        if splits.val is None:
            return None
        features = []
        # Features of this process's share, first of train, then of val.
        for pictures in (splits.labelled, splits.val):
            skip_broken = config.bad_images == "skip"
            views = CheckViews(pictures, config.image_size, config.augment, skip_broken)
            loader = check_loader(views, self.images, self.workers, self.world)
            batches = followed(loader, after_batch)
            features.append(extract_features(game.model.encoder_q, batches, game.device))
            # Other processes may have one batch more.
            longest = ceil(ceil(len(pictures) / self.world.size) / self.images)
            for _ in range(longest - len(loader)):
                after_batch()
        return 100 * knn_accuracy(*features, self.world)


def followed(batches: Iterable, after_batch: Callable[[], None]) -> Iterator:
    """The batches, with a call after each of them."""
    for batch in batches:
        yield batch
        after_batch()
