"""The score of a run while it goes on: kNN on the frozen trunk."""

from collections.abc import Callable, Iterable, Iterator
from math import ceil

import torch

from adco.data.datasets import Splits
from adco.data.loader import CheckViews, check_loader, workers_per_process
from adco.model import AdCo
from adco.pretrain.options import PretrainConfig
from adco.probe.features import extract_features, knn_accuracy
from ops.distributed import World


def knn_score(
    config: PretrainConfig,
    model: AdCo,
    splits: Splits,
    world: World,
    device: torch.device,
    between: Callable[[], None],
) -> float | None:
    """kNN accuracy of the query encoder's trunk on val, percent; None where there are no labels or
    --knn_freq is 0.

    between: called after each batch, equally often in every process.
    """
    if splits.val is None or not config.knn_freq:
        return None
    images = config.images_per_process(world.local_size)
    workers = workers_per_process(config.workers, world)
    skip_broken = config.bad_images == "skip"
    features = []
    for pictures in (splits.labelled, splits.val):
        views = CheckViews(pictures, config.image_size, config.augment, skip_broken)
        loader = check_loader(views, images, workers, world)
        features.append(extract_features(model.encoder_q, called(loader, between), device))
        longest = ceil(ceil(len(pictures) / world.size) / images)  # batches of the largest share
        for _ in range(longest - len(loader)):
            between()
    return 100 * knn_accuracy(*features, world)


def called(batches: Iterable, between: Callable[[], None]) -> Iterator:
    """The batches, with a call after each of them."""
    for batch in batches:
        yield batch
        between()
