"""Pictures in files or in memory, by index."""

import os
from copy import copy
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import UnidentifiedImageError

from ops.errors import InputError


class Pictures(Protocol):
    """Pictures by index, what their labels are (None: they have none) and the classes' names."""

    labels: np.ndarray | None
    classes: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int, renderer):
        """Picture `index` in RGB, in the form that the renderer (pil_render, fast_render) takes."""

    def name(self, index: int) -> str:
        """What to call it in a message."""

    def part(self, positions: np.ndarray) -> "Pictures":
        """The pictures at `positions`, in that order."""


class BrokenPicture(InputError):
    """A picture that cannot be read; `reason` is why, alone."""

    def __init__(self, sentence: str, reason: str = ""):  # a loader process hands on the sentence
        super().__init__(sentence)
        self.reason = reason


class FolderPictures:
    """Pictures in files, with the label of each or none.

    Whatever is wrong with a file, reading it raises BrokenPicture.
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
            raise  # says nothing of the picture
        except Exception as error:  # decoders raise of all kinds
            why = reason(error)
            sentence = f"cannot read the picture {path}: {why}; remove or replace it"
            raise BrokenPicture(sentence, why) from error

    def name(self, index: int) -> str:
        """Its path below the folder; bytes that are no text are written as \\x.."""
        return bytes(self.names[index]).decode(errors="backslashreplace")

    def part(self, positions: np.ndarray) -> "FolderPictures":
        part = copy(self)
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
        self.array = array
        self.labels = None if labels is None else np.asarray(labels)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int, renderer):
        return renderer.from_array(self.array[index])

    def name(self, index: int) -> str:
        return f"number {index}"

    def part(self, positions: np.ndarray) -> "ArrayPictures":
        labels = labels_at(self.labels, positions)
        return ArrayPictures(self.array[positions], labels, self.classes)


def labels_at(labels: np.ndarray | None, positions: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[positions]
