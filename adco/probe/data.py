"""What a probe works on: labelled training views, a held-out part of train, and val."""

from typing import NamedTuple

import numpy as np
import torch

from adco.data import pil_render
from adco.data.datasets import split_off
from adco.data.decoder import decoding_of
from adco.data.list_files import listed_splits, load_places
from adco.data.loader import CheckViews, LabelledViews, check_loader, share_of
from adco.data.pictures import Pictures
from adco.data.views import Recipe, draw_view, view_rng
from adco.encoder import Encoder, TrunkWeights
from adco.probe.features import Features, extract_features
from adco.probe.options import PLACES, ProbeConfig
from ops.distributed import ALONE, World, once_per_node
from ops.errors import InputError
from ops.journal import Journal
from ops.options import RunOptions
from ops.workers import SignalSafeLoader

CROP_VIEW = 1  # view number that seeds the place of a --randcrop; view 0 seeds all else


class ProbeSets(NamedTuple):
    """Labelled pictures."""

    train: Pictures
    held_out: Pictures | None  # None: all of train is trained on
    val: Pictures


class ProbeRun(NamedTuple):
    """What every protocol works on."""

    config: ProbeConfig
    encoder: Encoder
    sets: ProbeSets
    world: World
    device: torch.device
    journal: Journal
    trunk: TrunkWeights | None = None  # as its file holds it; None: random weights
    data: dict | None = None  # which pictures the sets are (adco.data.identity)


def load_probe_sets(config: ProbeConfig, holdout: float, world: World = ALONE) -> ProbeSets:
    """Train, its held-out share and val. Raises InputError where pictures or labels are missing."""
    # All labelled pictures.
    if config.dataset in PLACES:
        places = config.data, config.train_list, decoding_of(config)
        splits = once_per_node(lambda: load_places(*places), world)
    else:
        splits = listed_splits(config, world)
    train, val = splits.labelled, splits.val
    if train is None or val is None:
        raise InputError(
            f"{config.data!r} has no labels to score with; a probe needs class folders both in "
            "train and in val: train/CLASS/picture and val/CLASS/picture"
        )

    # Of train the share asked for.
    if config.train_fraction < 1:
        _, train = split_off(train, config.train_fraction, config.seed)
    if not holdout:
        return ProbeSets(train, None, val)

    # Of that, a share apart to choose by.
    train, held_out = split_off(train, holdout, config.seed)
    if not len(train):
        raise InputError(
            f"holdout={holdout} leaves no picture to train on (of {len(held_out)}, at least one "
            "of each class is held out); give more pictures or --holdout 0"
        )
    return ProbeSets(train, held_out, val)


class ProbeViews(LabelledViews):
    """(training view [C, S, S], label) of each picture, for pairs (epoch, index).

    randcrop: each view is a window of the picture at full resolution.
    """

    def __init__(self, pictures: Pictures, recipe: Recipe, randcrop: bool, seed: int):
        super().__init__(pictures, recipe.size)
        self.recipe, self.randcrop, self.seed = recipe, randcrop, seed

    def render(self, epoch: int, index: int) -> np.ndarray:
        pixels, size = self.pictures.read(index), self.size
        height, width = pixels.shape[:2]
        draw = draw_view(self.recipe, width, height, view_rng(self.seed, epoch, index, 0))
        # The drawn box gives way to a window of the view's own size.
        if self.randcrop:
            rng = view_rng(self.seed, epoch, index, CROP_VIEW)
            # A shorter side lies anywhere inside its window: Pillow crops black outside.
            spaces = [sorted((0, length - size)) for length in (width, height)]
            left, top = (int(rng.integers(least, most + 1)) for least, most in spaces)
            draw = draw._replace(box=(left, top, size, size))
        return pil_render.render(pixels, draw, size)


def probe_recipe(config: ProbeConfig) -> Recipe:
    """A crop and a flip; with --train_strong also the colours and the blur of pre-training."""
    plain = {} if config.train_strong else dict(jitter_p=0, gray_p=0, blur_p=0)
    min_scale = config.min_scale or (0.2 if config.train_strong else 0.08)
    return Recipe(config.image_size, min_scale, flip_p=0.5 * config.flip, **plain)


def scoring_loader(
    pictures: Pictures, config: RunOptions, world: World, skip_broken: bool = False
) -> SignalSafeLoader:
    """Test views and labels of this process's share. Places205 is made square first.

    skip_broken: pictures that cannot be read are left out.
    """
    square, whole = config.dataset in PLACES, not config.eval_crop
    views = CheckViews(pictures, config.image_size, skip_broken, square, whole)
    batch_size = max(1, config.global_batch_size // world.size)
    return check_loader(views, batch_size, config.workers, world)


def features_of_share(run: ProbeRun, pictures: Pictures, unit: bool = True) -> Features:
    """Features of this process's share of the pictures, finite ones, as extract_features."""
    number = len(share_of(pictures, run.world))
    loader = scoring_loader(pictures, run.config, run.world)
    return extract_features(run.encoder, loader, number, unit=unit, check=True)
