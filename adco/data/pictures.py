"""Pictures in files or in memory, by index."""

import os
from copy import copy
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import UnidentifiedImageError

from ops.errors import InputError


class Pictures(Protocol):
    """Pictures by index, with the label of each (None: there are no labels) and the class names."""

    labels: np.ndarray | None
    classes: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int, renderer):
        """Picture `index` in RGB, as `renderer` (pil_render or fast_render) takes it."""

    def name(self, index: int) -> str:
        """The picture's name in a message."""

    def part(self, positions: np.ndarray) -> "Pictures":
        """The pictures at `positions`, in that order."""


class BrokenPicture(InputError):
    """A picture that cannot be read. `reason` says why, without the path."""

    # A worker process hands on the sentence alone.
    def __init__(self, sentence: str, reason: str = ""):
        super().__init__(sentence)
        self.reason = reason


class FolderPictures:
    """Pictures in files, with the label of each or none.

    Reading a file raises BrokenPicture, whatever is wrong with it.
    """

    def __init__(
        self, root: Path, names: list[str], labels: list[int] | None = None, classes: list[str] = ()
    ):
        self.root = root
        # One block of memory: loader processes share it unchanged.
        self.names = np.array([os.fsencode(name) for name in names])
        self.labels = None if labels is None else np.array(labels)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, renderer):
        path = self.root / os.fsdecode(bytes(self.names[index]))
        try:
            data = path.read_bytes()
            if not data:
                raise OSError("the file is empty")
            return renderer.decode(data)
        except MemoryError:
            raise  # not the picture's fault
        except Exception as error:  # decoders raise errors of all kinds
            why = reason(error)
            sentence = f"cannot read the picture {path}: {why}; remove or replace it"
            raise BrokenPicture(sentence, why) from error

    def name(self, index: int) -> str:
        """Its path below the folder, with bytes that are no UTF-8 as \\x.."""
        return bytes(self.names[index]).decode(errors="backslashreplace")

    def part(self, positions: np.ndarray) -> "FolderPictures":
        part = copy(self)  # shallow: root and classes are shared
        part.names, part.labels = self.names[positions], labels_at(self.labels, positions)
        return part


def reason(error: Exception) -> str:
    """Why a picture could not be read, in one line that is the same each time."""
    if isinstance(error, UnidentifiedImageError):  # Pillow's text holds an address
        return "not a picture in a format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


class ArrayPictures:
    """Pictures in memory: uint8 [n, H, W, 3], with the label of each or none."""

    def __init__(self, array: np.ndarray, labels=None, classes: list[str] = ()):
        # A part shares the array, and has positions of its own in it.
        self.array, self.positions = array, np.arange(len(array))
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int, renderer):
        return renderer.from_array(self.array[self.positions[index]])

    def name(self, index: int) -> str:
        return f"number {index}"

    def part(self, positions: np.ndarray) -> "ArrayPictures":
        part = copy(self)
        part.positions, part.labels = self.positions[positions], labels_at(self.labels, positions)
        return part


def labels_at(labels: np.ndarray | None, positions: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[positions]
