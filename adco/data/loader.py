"""Batches of views: data sets of views, the order of an epoch, and the loaders."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from adco.data import fast_render, pil_render
from adco.data.pictures import BrokenPicture, Pictures
from adco.data.views import Recipe, as_batch, draw_view, view_rng
from ops.distributed import ALONE, World
from ops.errors import InputError
from ops.workers import SignalSafeLoader, workers_per_process

# Modules with the same function: render.
RENDERERS = {"fast": fast_render, "pil": pil_render}
STAND_IN = 2**31  # pseudo view number that seeds the draw of replacement pictures
NUM_STAND_INS = 20  # pictures that are tried in place of a broken one


class TrainingViews(Dataset):
    """Views of picture `index` at `epoch`, one per recipe. Indexed by (epoch, index).

    augment: which renderer, fast or pil. The draws are the same.
    skip_broken: a picture that cannot be read is replaced by another; without it, it raises
    BrokenPicture. The other picture is a pure function of (seed, epoch, index). Its views are drawn
    as those of the picture it replaces, so they differ from its own in the same batch.
    """

    def __init__(
        self, pictures: Pictures, recipes: list[Recipe], seed, augment="fast", skip_broken=False
    ):
        self.pictures, self.recipes, self.seed = pictures, recipes, seed
        # By its name: a loader process that is spawned gets this object pickled.
        self.augment, self.skip_broken = augment, skip_broken

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, positions: list[tuple[int, int]]) -> tuple[list[Tensor], dict[str, str]]:
        """uint8 [n, C, S, S] per recipe; and the pictures that were replaced, name to reason."""
        broken: dict[str, str] = {}
        rendered = [self._render(epoch, index, broken) for epoch, index in positions]
        return [as_batch(views) for views in zip(*rendered, strict=True)], broken

    def _render(self, epoch: int, index: int, broken_: dict[str, str]) -> list[np.ndarray]:
        """uint8 [S, S, C] per recipe."""
        # Decoding is the dearest part: once for all views.
        pixels = self._picture(epoch, index, broken_)
        height, width = pixels.shape[:2]
        render, rendered = RENDERERS[self.augment].render, []
        for view, recipe in enumerate(self.recipes):
            draw = draw_view(recipe, width, height, view_rng(self.seed, epoch, index, view))
            rendered.append(render(pixels, draw, recipe.size))
        return rendered

    def _picture(self, epoch: int, index: int, broken_: dict[str, str]) -> np.ndarray:
        """Picture `index`, or the first readable one of those drawn to replace it.

        Adds those that could not be read to `broken_`, name to reason.
        """
        chosen, rng = index, None  # most pictures are sound: the generator is made when needed
        for _ in range(1 + NUM_STAND_INS):
            try:
                return self.pictures.read(chosen)
            except BrokenPicture as error:
                if not self.skip_broken:
                    raise
                broken_[self.pictures.name(chosen)] = error.reason
            rng = rng or view_rng(self.seed, epoch, index, STAND_IN)
            chosen = int(rng.integers(len(self.pictures)))
        raise InputError(
            f"the picture {self.pictures.name(index)} is broken, and so are all {NUM_STAND_INS} "
            f"drawn to stand in for it ({broken_[self.pictures.name(index)]}); give a folder of "
            "sound pictures"
        )


class LabelledViews(Dataset):
    """(view [C, S, S], label) of each picture, in whole batches; without labels all are 0.

    skip_broken: leave out pictures that cannot be read; a batch may then be smaller, even empty.
    Without it they raise BrokenPicture. A subclass says what the view at a position is.
    """

    join = staticmethod(as_batch)  # views to a batch

    def __init__(self, pictures: Pictures, size: int = 0, skip_broken: bool = False):
        self.pictures, self.size, self.skip_broken = pictures, size, skip_broken
        labels = pictures.labels
        self.labels = np.zeros(len(pictures), np.int64) if labels is None else labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, positions: list) -> tuple[Tensor, Tensor]:
        """uint8 [n, C, S, S], [n]; n may be less than was asked for, and 0.

        positions: numbers of pictures, or tuples that end in one.
        """
        views, indices = [], []
        for position in positions:
            place = position if isinstance(position, tuple) else (position,)
            try:
                views.append(self.render(*place))
                indices.append(place[-1])
            except BrokenPicture:
                if not self.skip_broken:
                    raise
        # A batch may be empty but never missing: how many there are is known beforehand.
        empty = torch.empty(0, self.pictures.channels, self.size, self.size, dtype=torch.uint8)
        batch = self.join(views) if views else empty
        return batch, torch.as_tensor(self.labels[indices])


class CheckViews(LabelledViews):
    """The test views. square, whole: of each picture, as pil_render.check_view takes them."""

    def __init__(self, pictures, size: int, skip_broken=False, square=False, whole=False):
        super().__init__(pictures, size, skip_broken)
        self.square, self.whole = square, whole

    def render(self, index: int) -> np.ndarray:
        pixels = self.pictures.read(index)
        return pil_render.check_view(pixels, self.size, self.square, self.whole)


class EpochBatches(Sampler):
    """This process's batches of (epoch, index), a pure function of (seed, epoch).

    A global batch is the next `global_size` pictures of the epoch's permutation. Process r takes
    the r-th of its `world.size` parts. The last batch may be smaller; if a process would get fewer
    than `least` pictures of it, the epoch ends before it.

    Set `epoch` before each epoch, and `first` to begin inside it. The length is the whole epoch's.
    `shuffle` makes the permutation of random numbers; set another one for another kind of order.
    """

    def __init__(self, num_pictures: int, global_size: int, world: World, seed: int, least=1):
        self.global_size = global_size
        self.shuffle = lambda rng: rng.permutation(num_pictures)
        self.world, self.seed = world, seed
        self.epoch = self.first = 0
        # Pictures in each global batch; all but the last are full.
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
        # All processes make the same permutation; negative epochs are the start-up's passes.
        rng = np.random.default_rng((self.seed, self.epoch % 2**32))
        order = self.shuffle(rng)
        for step in range(self.first, len(self)):
            # Without a remainder the parts are equal; else the first ones have one picture more.
            batch = order[step * self.global_size :][: self.global_size]
            mine = np.array_split(batch, self.world.size)[self.world.rank]
            yield [(self.epoch, int(index)) for index in mine]


def batch_loader(dataset: Dataset, batches: Sampler, workers: int, pin_memory=False):
    """A loader of the batches that `dataset` makes of the lists of positions in `batches`."""
    # Nothing to collate: the data sets above return whole batches.
    return SignalSafeLoader(
        dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin_memory,
        persistent_workers=workers > 0, collate_fn=tuple,
    )  # fmt: skip


class TrainingLoader:
    """Epochs of batches of views: a list of uint8 [N, C, S, S], one per recipe, on the CPU.

    newly_broken: broken pictures since the last take_newly_broken(), name to reason.
    """

    def __init__(self, dataset: TrainingViews, batches: EpochBatches, workers: int, pin_memory):
        self.batches, self.newly_broken = batches, {}
        self.loader = batch_loader(dataset, batches, workers, pin_memory)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0):
        """The batches of an epoch; epochs -1, -2, ... are the start-up's passes.

        first: the batch to begin with. Nothing of the batches before it is read or drawn.
        """
        self.batches.epoch, self.batches.first = epoch, first
        # Workers read ahead: what they report counts when its batch is handed out.
        for batch, broken in self.loader:
            self.newly_broken |= broken
            yield batch

    def take_newly_broken(self) -> dict[str, str]:
        """The broken pictures since the last call, name to reason."""
        newly_broken, self.newly_broken = self.newly_broken, {}
        return newly_broken


def check_loader(
    views: Dataset, batch_size: int, workers: int, world: World = ALONE
) -> SignalSafeLoader:
    """Batches of this process's share of the views, in order.

    Over all processes every picture comes once. workers: of this node, as in the options.
    """
    batches = BatchSampler(share_of(views, world), batch_size, drop_last=False)
    return batch_loader(views, batches, workers_per_process(workers, world.local_size))


def share_of(pictures, world: World) -> range:
    """The numbers of those that this process scores: r, r + R, r + 2R, ..."""
    return range(world.rank, len(pictures), world.size)
