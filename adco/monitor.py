"""The score of a run while it goes on: kNN on the frozen trunk."""

import torch

from adco.data import Splits
from adco.loader import check_loader, workers_per_process
from adco.model import AdCo
from adco.probe import extract_features, knn_accuracy
from ops.distributed import World
from ops.pretrain_options import PretrainConfig


def knn_score(
    config: PretrainConfig, model: AdCo, splits: Splits, world: World, device: torch.device
) -> float | None:
    """kNN accuracy of the query encoder's trunk on val, percent; None where there are no labels or
    --knn_freq is 0.
    """
    if splits.val is None or not config.knn_freq:
        return None
    images = config.images_per_process(world.local_size)
    workers = workers_per_process(config.workers, world)
    skip_broken = config.bad_images == "skip"
    train, val = (
        extract_features(
            model.encoder_q,
            check_loader(
                pictures, config.image_size, images, workers, world, config.augment, skip_broken
            ),
            device,
        )
        for pictures in (splits.labelled, splits.val)
    )
    return 100 * knn_accuracy(train, val, world)
