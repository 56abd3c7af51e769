"""Views of pictures in batches: the order in which they are seen, and the loaders."""

import os

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, Subset

from adco import fast_views, views
from adco.pictures import Pictures
from adco.views import Recipe, draw_view, normalised, view_rng
from ops.distributed import World
from ops.errors import InputError
from ops.workers import ParentsLoader

STAND_IN = 2**31  # number of the view that stands for the choice of another picture
NUM_STAND_INS = 20  # pictures that are tried in place of a broken one


class TrainingViews(Dataset):
    """Views of picture `index` at `epoch`, one per recipe. Indexed by (epoch, index).

    augment: which renderer, fast or pil. The draws are the same.
    skip_broken: a picture that cannot be read is replaced by another, a pure function of (seed,
    epoch, index); its views are drawn as those of the picture it stands in for, so that in a batch
    with both they differ from its own. Otherwise it raises InputError.
    """

    def __init__(
        self,
        pictures: Pictures,
        recipes: list[Recipe],
        seed: int,
        augment: str = "fast",
        skip_broken: bool = False,
    ):
        self.pictures, self.recipes, self.seed = pictures, recipes, seed
        self.fast, self.skip_broken = augment == "fast", skip_broken

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: tuple[int, int]) -> list[Tensor]:
        """[3, S, S] per recipe."""
        views, _ = self.__getitems__([position])
        return [batch[0] for batch in views]

    def __getitems__(self, positions: list[tuple[int, int]]) -> tuple[list[Tensor], dict[str, str]]:
        """A whole batch at once: [n, 3, S, S] per recipe; and why which pictures were replaced."""
        broken: dict[str, str] = {}
        rendered = [self._render(epoch, index, broken) for epoch, index in positions]
        return [normalised(batch) for batch in zip(*rendered, strict=True)], broken

    def _render(self, epoch: int, index: int, broken_: dict[str, str]) -> list[np.ndarray]:
        """uint8 [S, S, 3] per recipe, from one decoding."""
        picture = self._picture(epoch, index, broken_)
        height, width = picture.shape[:2] if self.fast else picture.size[::-1]
        render = fast_views.render if self.fast else views.render
        rendered = []
        for view, recipe in enumerate(self.recipes):
            draw = draw_view(recipe, width, height, view_rng(self.seed, epoch, index, view))
            rendered.append(render(picture, draw, recipe.size))
        return rendered

    def _picture(self, epoch: int, index: int, broken_: dict[str, str]):
        """Picture `index`, or the first readable one of those drawn to stand in for it.

        Those that could not be read are added to `broken_`, name to reason.
        """
        read = self.pictures.pixels if self.fast else self.pictures.picture
        chosen, rng = index, None
        for _ in range(1 + NUM_STAND_INS):
            try:
                return read(chosen)
            except InputError as error:
                if not self.skip_broken:
                    raise
                broken_[self.pictures.name(chosen)] = str(error.__cause__)
            rng = rng or view_rng(self.seed, epoch, index, STAND_IN)
            chosen = int(rng.integers(len(self.pictures)))
        raise InputError(
            f"the picture {self.pictures.name(index)} is broken, and so are all {NUM_STAND_INS} "
            "drawn to stand in for it; give a folder of sound pictures"
        )


class CheckViews(Dataset):
    """(test view [3, S, S], label) of each picture, in whole batches.

    skip_broken: pictures that cannot be read are left out; otherwise they raise InputError.
    """

    def __init__(
        self, pictures: Pictures, size: int, augment: str = "pil", skip_broken: bool = False
    ):
        self.pictures, self.size, self.fast = pictures, size, augment == "fast"
        self.skip_broken = skip_broken

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """[n, 3, S, S], [n]; n may be less than was asked for, and 0."""
        rendered = {}
        for index in indices:
            try:
                rendered[index] = self._render(index)
            except InputError:
                if not self.skip_broken:
                    raise
        batch = torch.empty(0, 3, self.size, self.size)
        if rendered:
            batch = normalised(list(rendered.values()))
        return batch, torch.as_tensor(self.pictures.labels[list(rendered)])

    def _render(self, index: int) -> np.ndarray:
        if self.fast:
            return fast_views.check_view(self.pictures.pixels(index), self.size)
        return views.check_view(self.pictures.picture(index), self.size)


def as_it_is(batch):
    """Collate nothing: the data sets above return whole batches."""
    return batch


class EpochBatches(Sampler):
    """This process's batches of (epoch, index), a pure function of (seed, epoch).

    A global batch is M consecutive pictures of the epoch's permutation; process r takes the r-th N
    of them. What does not fill a last batch waits for the next epoch. `first` is the number of the
    batch to begin with; the length is the whole epoch's.
    """

    def __init__(self, num_pictures: int, images_per_process: int, world: World, seed: int):
        self.num_pictures, self.images, self.world, self.seed = (
            num_pictures,
            images_per_process,
            world,
            seed,
        )
        self.epoch = self.first = 0

    @property
    def global_size(self) -> int:
        """M, pictures per step over all processes."""
        return self.images * self.world.size

    def __len__(self) -> int:
        return self.num_pictures // self.global_size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch % 2**32)).permutation(
            self.num_pictures
        )
        for step in range(self.first, len(self)):
            start = (step * self.world.size + self.world.rank) * self.images
            yield [(self.epoch, int(index)) for index in order[start : start + self.images]]


class TrainingLoader:
    """Epochs of batches of views: a list of [N, 3, S, S], one per recipe, on the CPU.

    news: broken pictures of the batches handed out since take_news(), name to reason.
    """

    def __init__(self, views: TrainingViews, batches: EpochBatches, workers: int, pin_memory: bool):
        if len(batches) == 0:
            raise InputError(
                f"{len(views)} pictures do not fill a batch of {batches.global_size}; "
                "lower --batch_size or give more pictures"
            )
        self.batches = batches
        self.news: dict[str, str] = {}
        self.loader = ParentsLoader(
            views,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            collate_fn=as_it_is,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0):
        """Iterate over the batches of an epoch; -1, -2, ... are the start-up's passes.

        first: the batch to begin with; nothing of those before it is read or drawn.
        """
        self.batches.epoch, self.batches.first = epoch, first
        for batch, broken in self.loader:
            self.news |= broken
            yield batch

    def take_news(self) -> dict[str, str]:
        """The broken pictures met since this was last asked, name to reason."""
        news, self.news = self.news, {}
        return news


def check_loader(
    pictures: Pictures,
    size: int,
    batch_size: int,
    workers: int,
    world: World,
    augment: str = "pil",
    skip_broken: bool = False,
) -> ParentsLoader:
    """(views, labels) of this process's share of the pictures, in order: every picture once over
    all processes. With skip_broken a batch may be smaller, even empty.
    """
    share = Subset(
        CheckViews(pictures, size, augment, skip_broken),
        range(world.rank, len(pictures), world.size),
    )
    return ParentsLoader(share, batch_size, num_workers=workers, collate_fn=as_it_is)


def workers_per_process(workers: int, world: World) -> int:
    """Loader processes of one process: its share of `workers`, and of the node's cores."""
    return min(
        workers,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    ) // max(1, world.local_size)
