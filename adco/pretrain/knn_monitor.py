"""The score of a run while it goes on: kNN on the frozen trunk."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil

import torch

from adco.data.datasets import Splits
from adco.data.loader import CheckViews, check_loader
from adco.model import AdCo
from adco.probe.features import extract_features
from adco.probe.knn import knn_accuracy
from ops.distributed import World


@dataclass
class KnnMonitor:
    """Scores the query encoder's trunk on val, by its labelled training pictures."""

    splits: Splits
    world: World
    device: torch.device
    image_size: int  # pixels
    images: int  # N, pictures a batch
    workers: int
    augment: str  # which renderer
    skip_broken: bool

    def score(self, model: AdCo, after_batch: Callable[[], None]) -> float | None:
        """kNN accuracy, percent; None where there are no labels.

        after_batch: called after each batch, equally often in every process.
        """
        if self.splits.val is None:
            return None
        features = []
        # Features of this process's share, first of train, then of val.
        for pictures in (self.splits.labelled, self.splits.val):
            views = CheckViews(pictures, self.image_size, self.augment, self.skip_broken)
            loader = check_loader(views, self.images, self.workers, self.world)
            batches = followed(loader, after_batch)
            features.append(extract_features(model.encoder_q, batches, self.device))
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
