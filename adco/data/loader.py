"""Views of pictures in batches: the order in which they are seen, and the loaders."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from adco.data import fast_render, pil_render
from adco.data.pictures import BrokenPicture, Pictures
from adco.data.views import Recipe, draw_view, normalised, view_rng
from ops.distributed import World
from ops.errors import InputError
from ops.workers import ParentsLoader

# Modules with the same functions: decode, from_array, size, render, check_view.
RENDERERS = {"fast": fast_render, "pil": pil_render}
STAND_IN = 2**31  # pseudo view number that seeds the draw of replacement pictures
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
        self.renderer, self.skip_broken = RENDERERS[augment], skip_broken

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, positions: list[tuple[int, int]]) -> tuple[list[Tensor], dict[str, str]]:
        """A whole batch at once: [n, 3, S, S] per recipe; and why which pictures were replaced."""
        broken: dict[str, str] = {}
        rendered = [self._render(epoch, index, broken) for epoch, index in positions]
        return [normalised(batch) for batch in zip(*rendered, strict=True)], broken

    def _render(self, epoch: int, index: int, broken_: dict[str, str]) -> list[np.ndarray]:
        """uint8 [S, S, 3] per recipe, from one decoding."""
        picture = self._picture(epoch, index, broken_)
        size = self.renderer.size(picture)
        rendered = []
        for view, recipe in enumerate(self.recipes):
            draw = draw_view(recipe, *size, view_rng(self.seed, epoch, index, view))
            rendered.append(self.renderer.render(picture, draw, recipe.size))
        return rendered

    def _picture(self, epoch: int, index: int, broken_: dict[str, str]):
        """Picture `index`, or the first readable one of those drawn to stand in for it.

        Those that could not be read are added to `broken_`, name to reason.
        """
        chosen, rng = index, None
        for _ in range(1 + NUM_STAND_INS):
            try:
                return self.pictures.read(chosen, self.renderer)
            except BrokenPicture as error:
                if not self.skip_broken:
                    raise
                broken_[self.pictures.name(chosen)] = error.reason
            rng = rng or view_rng(self.seed, epoch, index, STAND_IN)
            chosen = int(rng.integers(len(self.pictures)))
        raise InputError(
            f"the picture {self.pictures.name(index)} is broken, and so are all {NUM_STAND_INS} "
            "drawn to stand in for it; give a folder of sound pictures"
        )


class CheckViews(Dataset):
    """(test view [3, S, S], label) of each picture, in whole batches.

    skip_broken: pictures that cannot be read are left out, so that a batch may be smaller, even
    empty; otherwise they raise InputError.
    square: whatever a picture's shape, a square is made of it.
    """

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        augment: str = "pil",
        skip_broken: bool = False,
        square: bool = False,
    ):
        self.pictures, self.size, self.renderer = pictures, size, RENDERERS[augment]
        self.skip_broken, self.square = skip_broken, square

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """[n, 3, S, S], [n]; n may be less than was asked for, and 0."""
        rendered = {}
        for index in indices:
            try:
                rendered[index] = self._render(index)
            except BrokenPicture:
                if not self.skip_broken:
                    raise
        batch = torch.empty(0, 3, self.size, self.size)
        if rendered:
            batch = normalised(list(rendered.values()))
        return batch, torch.as_tensor(self.pictures.labels[list(rendered)])

    def _render(self, index: int) -> np.ndarray:
        picture = self.pictures.read(index, self.renderer)
        return self.renderer.check_view(picture, self.size, self.square)


def as_it_is(batch):
    """Collate nothing: the data sets above return whole batches."""
    return batch


class EpochBatches(Sampler):
    """This process's batches of (epoch, index), a pure function of (seed, epoch).

    A global batch is `global_size` consecutive pictures of the epoch's permutation; process r takes
    the r-th of `world.size` equal parts of it. The last batch may be smaller. One that gives a
    process fewer than `least` pictures is left out: these wait for the next epoch.

    Set `epoch` before each epoch, and `first` to begin inside it; the length is the whole epoch's.
    """

    def __init__(
        self, num_pictures: int, global_size: int, world: World, seed: int, least: int = 1
    ):
        self.num_pictures, self.global_size = num_pictures, global_size
        self.world, self.seed = world, seed
        self.epoch = self.first = 0
        sizes = [min(global_size, num_pictures - i) for i in range(0, num_pictures, global_size)]
        self.sizes = [size for size in sizes if size >= least * world.size]
        if not self.sizes:
            raise InputError(
                f"{min(global_size, num_pictures)} pictures do not fill a batch of {least} for "
                f"each of {world.size} process(es); give more pictures, or change --batch_size"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch % 2**32))
        order = rng.permutation(self.num_pictures)
        for step in range(self.first, len(self)):
            batch = order[step * self.global_size :][: self.global_size]
            mine = np.array_split(batch, self.world.size)[self.world.rank]
            yield [(self.epoch, int(index)) for index in mine]


def batch_loader(
    dataset: Dataset, batches: Sampler, workers: int, pin_memory: bool = False
) -> ParentsLoader:
    """A loader of the batches that `dataset` makes of each list of positions in `batches`."""
    return ParentsLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        collate_fn=as_it_is,
    )


class TrainingLoader:
    """Epochs of batches of views: a list of [N, 3, S, S], one per recipe, on the CPU.

    newly_broken: pictures met since take_newly_broken(), name to reason.
    """

    def __init__(
        self, dataset: TrainingViews, batches: EpochBatches, workers: int, pin_memory: bool
    ):
        self.batches = batches
        self.newly_broken: dict[str, str] = {}
        self.loader = batch_loader(dataset, batches, workers, pin_memory)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0):
        """Iterate over the batches of an epoch; -1, -2, ... are the start-up's passes.

        first: the batch to begin with; nothing of those before it is read or drawn.
        """
        self.batches.epoch, self.batches.first = epoch, first
        for batch, broken in self.loader:
            self.newly_broken |= broken
            yield batch

    def take_newly_broken(self) -> dict[str, str]:
        """The broken pictures met since this was last asked, name to reason."""
        newly_broken, self.newly_broken = self.newly_broken, {}
        return newly_broken


def check_loader(views: Dataset, batch_size: int, workers: int, world: World) -> ParentsLoader:
    """Batches of this process's share of the views, in order.

    Over all processes every picture comes once.
    """
    share = range(world.rank, len(views), world.size)
    return batch_loader(views, BatchSampler(share, batch_size, drop_last=False), workers)
