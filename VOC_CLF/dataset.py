"""VOC2007: pictures, labels and views.

Labels [n, 20]: 1 the picture shows an object of the class, 0 it shows none, IGNORED all its objects
of the class are difficult ones.
"""

import os
import re
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
import torchvision.transforms.functional as VF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from adco.data.decoder import AS_STORED, Decoding
from adco.data.loader import LabelledViews
from adco.data.pictures import FolderPictures
from adco.data.views import view_rng
from ops.errors import InputError, some

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
IGNORED = -1
PICTURES, NOTES = "JPEGImages", "Annotations"  # folders
MEAN = (0.4573, 0.4388, 0.4073)  # of VOC2007, RGB in [0, 1]
STD = (0.2675, 0.2638, 0.2777)


def load_voc(data: str, decoding: Decoding = AS_STORED) -> dict[str, FolderPictures]:
    """train, val and, where its archive is there too, test of VOC2007 below `data`/VOCdevkit.

    Raises InputError naming what is missing.
    """
    root = Path(data) / "VOCdevkit" / "VOC2007"
    needed = (NOTES, "ImageSets/Main", PICTURES)
    if absent := [name for name in needed if not os.path.isdir(root / name)]:
        expected = "--data to hold VOCdevkit/VOC2007 as its archives unpack"
        raise InputError(f"{str(root)!r} has no {', '.join(absent)}; expected {expected}")
    has_test = (root / "ImageSets/Main/test.txt").is_file()
    names = ("train", "val", "test") if has_test else ("train", "val")
    return {name: read_split(root, name, decoding) for name in names}


def read_split(root: Path, name: str, decoding: Decoding) -> FolderPictures:
    """The pictures that ImageSets/Main/<name>.txt lists, with labels from their annotations."""
    listing, pictures, notes = root / f"ImageSets/Main/{name}.txt", root / PICTURES, root / NOTES
    # Look for both files of every listed picture now, not in the middle of training.
    ids = read_text(listing).split()
    for folder, what, end in (pictures, "picture", "jpg"), (notes, "annotation", "xml"):
        if missing := [i for i in ids if not os.path.isfile(folder / f"{i}.{end}")]:
            why = f"{str(folder)!r} lacks the {what} of {some(missing)}, which {name}.txt lists"
            raise InputError(f"{why}; unpack the archive again")
    labels = np.array([read_labels(notes / f"{i}.xml") for i in ids])
    if not (labels == 1).any():
        raise InputError(f"no picture of {str(listing)!r} shows an object of the 20 classes")
    return FolderPictures(pictures, [f"{i}.jpg" for i in ids], labels, CLASSES, decoding)


def read_labels(path: Path) -> np.ndarray:
    """[20] int8: 1, 0 or IGNORED for each class, from an annotation."""
    labels = np.zeros(len(CLASSES), np.int8)
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise InputError(f"{str(path)!r} is no VOC annotation: {error}") from error
    for found in root.iter("object"):
        name = found.findtext("name", "").strip()
        if name not in CLASSES:
            raise InputError(f"{str(path)!r} names an object {name!r}; VOC2007 has no such class")
        # One object that is not difficult makes the label 1, whatever the others are.
        number, is_difficult = CLASSES.index(name), found.findtext("difficult", "").strip() == "1"
        labels[number] = IGNORED if is_difficult and labels[number] != 1 else 1
    return labels


def read_text(path: Path) -> str:
    """A list or an annotation, in the encoding that it declares, else in UTF-8."""
    try:
        data = path.read_bytes()
        # <?xml version="1.0" encoding="gb2312"?>; a BOM says UTF-16, in which that is not found.
        declared = re.match(rb"<\?xml[^>]*encoding\s*=\s*[\"']([\w.-]+)", data)
        default = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return data.decode(declared[1].decode() if declared else default)
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; unpack the archive again") from error


class VocViews(LabelledViews):
    """(view(picture), labels [20] int8) of each picture, in whole batches."""

    join = staticmethod(torch.stack)

    def __init__(self, pictures: FolderPictures, view):
        super().__init__(pictures)
        self.view = view

    def render(self, index: int, **how) -> Tensor:
        return self.view(Image.fromarray(self.pictures.read(index)), **how)


class VocTrainingViews(VocViews):
    """(random view [3, S, S], labels [20] of 0 and 1) of each picture, for pairs (epoch, index)."""

    def __init__(self, pictures: FolderPictures, size: int, seed: int):
        super().__init__(pictures, partial(training_view, size=size))
        self.seed = seed
        # A class whose objects are all difficult trains as absent.
        self.labels = (pictures.labels == 1).astype(np.float32)

    def render(self, epoch: int, index: int) -> Tensor:
        return super().render(index, rng=view_rng(self.seed, epoch, index, view=0))


def training_view(picture: Image.Image, size: int, rng: np.random.Generator) -> Tensor:
    """[3, size, size]: the whole picture, changed in brightness or gray, flipped, rotated."""
    # All draws come first, so that their number does not depend on their values.
    brighten, gray, flip = rng.random(3) < (0.5, 0.25, 0.25)
    brightness, angle = rng.uniform(0.8, 1.2), rng.uniform(-25, 25)  # factor, degrees
    # The shape of the picture is not kept.
    view = VF.resize(picture, [size, size])
    if brighten:
        view = VF.adjust_brightness(view, brightness)
    elif gray:
        view = VF.to_grayscale(view, num_output_channels=3)
    if flip:
        view = VF.hflip(view)
    return normalised_tensor(VF.rotate(view, angle, InterpolationMode.NEAREST))


def resized_to_crop(picture: Image.Image, size: int) -> Image.Image:
    return VF.resize(picture, round(size * 330 / 300))  # of the shorter side


def center_crop(picture: Image.Image, size: int) -> Tensor:
    """[3, size, size]: the view that the epoch is chosen by."""
    return normalised_tensor(VF.center_crop(resized_to_crop(picture, size), [size, size]))


def five_crops(picture: Image.Image, size: int) -> Tensor:
    """[5, 3, size, size]: corners and centre, the views that are scored."""
    crops = VF.five_crop(resized_to_crop(picture, size), [size, size])
    return torch.stack([normalised_tensor(crop) for crop in crops])


def normalised_tensor(picture: Image.Image) -> Tensor:
    return VF.normalize(VF.to_tensor(picture), MEAN, STD, inplace=True)
