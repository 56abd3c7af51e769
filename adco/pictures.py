"""Pictures in files or in memory, whole, by index: for Pillow, and as arrays."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from adco import fast_views
from ops.errors import InputError

UNREADABLE = "cannot read the picture {path}: {error}; remove or replace it"


class FolderPictures:
    """Pictures in files, with the label of each or none."""

    def __init__(
        self, root: Path, names: list[str], labels: list[int] | None = None, classes: list[str] = ()
    ):
        self.root = root
        self.names = np.array(
            [os.fsencode(name) for name in names]
        )  # one block: workers share it unchanged
        self.labels = None if labels is None else np.array(labels)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Image.Image:
        """Picture `index` in RGB, decoded by Pillow."""
        with self._readable(index) as path, Image.open(path) as image:
            return image.convert("RGB")

    def pixels(self, index: int) -> np.ndarray:
        """The same picture, uint8 [H, W, 3], decoded the fast way."""
        with self._readable(index) as path:
            return fast_views.decode(path.read_bytes())

    @contextmanager
    def _readable(self, index: int):
        path = self.root / os.fsdecode(bytes(self.names[index]))
        try:
            yield path
        except OSError as error:
            raise InputError(UNREADABLE.format(path=path, error=error)) from error


class ArrayPictures:
    """Pictures in memory: uint8 [n, H, W, 3], with the label of each or none."""

    def __init__(self, array: np.ndarray, labels=None, classes: list[str] = ()):
        self.array = array
        self.labels = None if labels is None else np.asarray(labels)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.array)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def pixels(self, index: int) -> np.ndarray:
        return self.array[index]


Pictures = FolderPictures | ArrayPictures
