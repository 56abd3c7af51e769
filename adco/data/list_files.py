"""Pictures named in list files: Places205, and the part of a training set to use."""

import os
import posixpath
import re
from pathlib import Path

import numpy as np

from adco.data.datasets import Splits, splits_of
from adco.data.decoder import AS_STORED, Decoding
from adco.data.folder import read_folder
from adco.data.pictures import FilePictures, FolderPictures
from ops.distributed import World
from ops.errors import InputError, some

PLACES_PICTURES = "data/vision/torralba/deeplearning/images256"
PLACES_LISTS = "trainvalsplit_places205"
PLACES_CLASSES = 205


def load_places(data: str, train_list: str = "", decoding: Decoding = AS_STORED) -> Splits:
    """Places205 in its published layout.

    train_list: a file to use in place of the training list. Raises InputError where a list or a
    picture is missing, or a line is not 'path label'.
    """
    pictures, lists = Path(data) / PLACES_PICTURES, Path(data) / PLACES_LISTS
    if not os.path.isdir(pictures):  # or not readable
        fault = f"no pictures of Places205 at {str(pictures)!r}"
        raise InputError(f"{fault}; --data has to hold {PLACES_PICTURES} and {PLACES_LISTS}")
    files = train_list or lists / "train_places205.csv", lists / "val_places205.csv"
    # One walk through the folders is faster than a look for each of 2.5 million files.
    present = set(read_folder(pictures).names)
    train, val = (read_places(Path(file), pictures, present, decoding) for file in files)
    return Splits(train, train, val)


def read_places(path: Path, root: Path, present: set[str], decoding: Decoding) -> FolderPictures:
    """The pictures that a list names, one 'path label' a line.

    present: the paths, relative to `root`, that exist.
    """
    names, labels = [], []
    for where, line in read_lines(path):
        # The label is the last word: a path may have spaces.
        match = re.fullmatch(r"(.*\S)\s+(\d+)\s*", line)
        if match is None or int(match[2]) >= PLACES_CLASSES:
            expected = f"a path, a space and a label from 0 to {PLACES_CLASSES - 1}"
            raise InputError(f"{where} is {line!r}; expected {expected}")
        names.append(inside(match[1], where))
        labels.append(int(match[2]))
    check_named(path, len(names), sorted(set(names) - present), f"in {str(root)!r}")
    return FolderPictures(root, names, labels, [*map(str, range(PLACES_CLASSES))], decoding)


def check_named(path: Path, number: int, missing: list[str], where: str) -> None:
    """Raise InputError where a list names no picture, or some that are missing."""
    if not number:
        raise InputError(f"{str(path)!r} names no picture; expected one on each line")
    if missing:
        fault = f"{len(missing)} of {number} pictures of {str(path)!r} are not {where}"
        raise InputError(f"{fault}: {some(missing)}; correct the list, or fetch them")


def read_lines(path: Path):
    """("line N of FILE", line) of each line that is not blank; N is from 1."""
    try:
        # Bytes that are no UTF-8 are kept, as in the file names that the system gives.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        fault = f"cannot read the list {str(path)!r}: {error.strerror or error}"
        raise InputError(f"{fault}; expected a text file") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {str(path)!r}", line.rstrip("\r")


def inside(name: str, where: str) -> str:
    """A path of a list, relative to the folder of the pictures.

    A leading / means that folder, not the machine's root. Raises InputError for a path that leads
    out of it.
    """
    relative = posixpath.normpath(name.lstrip("/")) if name.strip("/") else "."
    if relative.split("/")[0] in ("..", ".") or "\0" in name:
        fault = f"{where} names {name!r}, which is no picture inside the data folder"
        raise InputError(f"{fault}; correct the list")
    return relative


def listed_splits(config, world: World) -> Splits:
    """The pictures that the options of a run name (RunOptions), in train those of --list alone.

    A line of it is a path below the training folder, or absolute inside it, or a file name alone.
    Raises InputError naming the missing ones.
    """
    splits, path = splits_of(config, world), Path(config.train_list)
    pictures = splits.train
    if not config.train_list:
        return splits
    if not isinstance(pictures, FilePictures):
        raise InputError("--train_list names files; this data set has none")

    name_of = getattr(pictures, "name_of", str)  # pictures in shards have no path
    # Positions by path and, where no two classes use the same file name, by file name.
    paths = pictures.file_names()
    position = {os.path.basename(name): i for i, name in enumerate(paths)}
    if len(position) < len(paths):
        position = {}
    position |= {name: i for i, name in enumerate(paths)}

    # A list may name a picture twice, or by a path that begins with train/.
    chosen, missing = [], []
    for where, line in read_lines(path):
        name = inside(name_of(line.strip()), where)
        found = position.get(name, position.get(name.removeprefix("train/")))
        if found is None:
            missing.append(name)
        else:
            chosen.append(found)
    check_named(path, len(chosen) + len(missing), missing, "among those to train on")
    train = pictures.part(np.array(sorted(set(chosen))))
    return splits._replace(train=train, labelled=splits.labelled and train)
