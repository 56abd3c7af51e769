"""What a probe sees: labelled training views, a held-out part of train, and val."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import functional as VF

from adco.data import load_splits
from adco.lists import SquaredPictures, listed_part, load_places, share_of_each_class
from adco.loader import check_loader
from adco.pictures import Pictures
from adco.views import Recipe, draw_view, normalised, render, view_rng
from ops.distributed import World
from ops.errors import InputError
from ops.probe_options import PLACES, ProbeConfig
from ops.workers import ParentsLoader

CROP_VIEW = 1  # number of the view that --randcrop draws its place with; view 0 is all else


class Part:
    """Some pictures of a data set, in a given order."""

    def __init__(self, pictures: Pictures, positions: np.ndarray):
        self.pictures, self.positions = pictures, positions
        self.labels, self.classes = pictures.labels[positions], pictures.classes

    def __len__(self) -> int:
        return len(self.positions)

    def picture(self, index: int) -> Image.Image:
        return self.pictures.picture(int(self.positions[index]))


class ProbeSets(NamedTuple):
    """Labelled pictures. `held_out` is None where everything is trained on."""

    train: Pictures
    held_out: Pictures | None
    val: Pictures
    classes: list[str]


def load_probe_sets(config: ProbeConfig, holdout: float) -> ProbeSets:
    """Train, its held-out share and val. Raises InputError where pictures or labels are missing."""
    if config.dataset in PLACES:
        splits = load_places(config.data, config.train_list)
    else:
        splits = load_splits(config.dataset, config.data, bool(config.download))
    train, val = splits.labelled, splits.val
    if train is None or val is None:
        raise InputError(
            f"{config.data!r} has no labels to score with; a probe needs class folders both in "
            "train and in val: train/CLASS/picture and val/CLASS/picture"
        )
    positions = np.arange(len(train))
    if config.train_list and config.dataset not in PLACES:
        positions = np.array(listed_part(train, Path(config.train_list)))
    if config.train_fraction < 1:
        labels = train.labels[positions]
        positions = positions[share_of_each_class(labels, config.train_fraction, config.seed)]
    held_out = None
    if holdout:
        apart = share_of_each_class(train.labels[positions], holdout, config.seed)
        held_out = Part(train, positions[apart])
        positions = np.delete(positions, apart)
        if len(positions) == 0:
            raise InputError(
                f"holdout={holdout} leaves no picture to train on (of {len(apart)}, at least one "
                "of each class is held out); give more pictures or --holdout 0"
            )
    return ProbeSets(Part(train, positions), held_out, val, train.classes)


class ProbeViews(Dataset):
    """(training view [3, S, S], label) of a picture. Indexed by (epoch, index)."""

    def __init__(self, pictures: Pictures, recipe: Recipe, randcrop: bool, seed: int):
        self.pictures, self.recipe, self.randcrop, self.seed = pictures, recipe, randcrop, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = position
        picture, size = self.pictures.picture(index), self.recipe.size
        if self.randcrop:
            picture = padded(picture, size)
        draw = draw_view(self.recipe, *picture.size, view_rng(self.seed, epoch, index, 0))
        if self.randcrop:
            rng = view_rng(self.seed, epoch, index, CROP_VIEW)
            left, top = (int(rng.integers(length - size + 1)) for length in picture.size)
            draw = draw._replace(box=(left, top, size, size))
        (view,) = normalised([render(picture, draw, size)])
        return view, int(self.pictures.labels[index])


def padded(picture: Image.Image, size: int) -> Image.Image:
    """The picture with black borders on all sides where it is smaller than size x size."""
    across, down = (max(0, size - length) for length in picture.size)
    if not across and not down:
        return picture
    sides = [across // 2, down // 2, across - across // 2, down - down // 2]
    return VF.pad(picture, sides)


def probe_recipe(config: ProbeConfig) -> Recipe:
    """A crop and a flip; with --train_strong also the colours and the blur of pre-training."""
    recipe = Recipe(config.image_size, config.view_min_scale(), flip_p=0.5 * config.flip)
    if config.train_strong:
        return recipe
    return Recipe(
        recipe.size, recipe.min_scale, jitter_p=0, gray_p=0, blur_p=0, flip_p=recipe.flip_p
    )


class ProbeBatches(Sampler):
    """This process's batches of (epoch, index), a pure function of (seed, epoch).

    A global batch is up to `size` consecutive pictures of the epoch's permutation, dealt out to the
    processes in turn; the last one may be smaller. One that gives a process fewer than `least`
    pictures is left out (BatchNorm in train mode needs two).
    """

    def __init__(self, num_pictures: int, size: int, world: World, seed: int, least: int = 1):
        self.num_pictures, self.world, self.seed, self.epoch = num_pictures, world, seed, 0
        parts = [(start, min(start + size, num_pictures)) for start in range(0, num_pictures, size)]
        self.parts = [(start, end) for start, end in parts if end - start >= least * world.size]
        if not self.parts:
            raise InputError(
                f"a batch of {min(size, num_pictures)} of {num_pictures} training pictures gives "
                f"{world.size} process(es) fewer than {least} each; raise --batch_size or lower "
                "--nproc"
            )

    def __len__(self) -> int:
        return len(self.parts)

    def total(self, step: int) -> int:
        """Pictures of a step over all processes."""
        start, end = self.parts[step]
        return end - start

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_pictures)
        for start, end in self.parts:
            mine = order[start:end][self.world.rank :: self.world.size]
            yield [(self.epoch, int(index)) for index in mine]


def probe_loader(
    views: ProbeViews, batches: ProbeBatches, workers: int, pin: bool
) -> ParentsLoader:
    """Batches of (views [n, 3, S, S], labels [n]); set `batches.epoch` before each epoch."""
    return ParentsLoader(
        views,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )


def scoring_loader(
    pictures: Pictures, config: ProbeConfig, batch_size: int, workers: int, world: World
) -> ParentsLoader:
    """Test views and labels of this process's share. Places205 is made square first."""
    if config.dataset in PLACES:
        pictures = SquaredPictures(pictures, round(config.image_size * 256 / 224))
    return check_loader(pictures, config.image_size, batch_size, workers, world)
