"""Pictures in files or in memory, by index."""

import errno
import os
import time
from collections import Counter
from copy import copy
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from adco.data.decoder import AS_STORED, ORIENTATION, TooLarge, decode, with_channels
from ops.errors import InputError, RunFailed, printable

# What the operating system says where a disk, a network or the machine fails, and not a file.
OUTAGES = (
    "EIO", "ESTALE", "EMFILE", "ENFILE", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNABORTED",
    "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "EREMOTEIO",
)  # fmt: skip
OUTAGE_SECONDS = 120.0  # for which a file server may be away


class Pictures:
    """Pictures by index, with the label of each (None: there are no labels) and the class names.

    channels: C. A subclass reads them: its read(index) gives uint8 [H, W, C].
    """

    def __init__(self, number: int, labels, classes: list[str], channels: int):
        self.labels = None if labels is None else np.asarray(labels)
        self.classes, self.channels = classes, channels
        # Where each lies in what a part shares with the whole. Loader processes share it too,
        # however they start: a tensor is handed over, not copied.
        self.positions = torch.arange(number)

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        """The picture's name in a message."""
        return f"number {index}"

    def file_names(self) -> list[str]:
        """The names of all, where they are files."""
        return []

    def part(self, positions: np.ndarray) -> "Pictures":
        """The pictures at `positions`, in that order."""
        part = copy(self)  # shallow: what does not depend on positions is shared
        part.positions = self.positions[positions]
        part.labels = None if self.labels is None else self.labels[positions]
        return part


class BrokenPicture(InputError):
    """A picture that cannot be read. `reason` says why, without the path."""

    # A worker process hands on the sentence alone.
    def __init__(self, sentence: str, reason: str = ""):
        super().__init__(sentence)
        self.reason = reason


class FilePictures(Pictures):
    """Pictures in files, or in parts of files, with the label of each or none.

    left_out: kinds of files in the folder that are not among them, and how many of each.
    Reading one raises BrokenPicture, whatever is wrong with it; RunFailed where the place of all
    cannot be reached for OUTAGE_SECONDS. A subclass says how one is opened: open(index).
    """

    remedy = "remove or replace it"
    away = "the folder or its file server is away"

    def __init__(
        self, root, names: list[str], labels=None, classes=(), decoding=AS_STORED, left_out=None
    ):
        super().__init__(len(names), labels, classes, decoding.channels)
        self.root, self.decoding, self.left_out = root, decoding, left_out or Counter()
        self.folders = {"": root}  # with what the names of the pictures in each begin
        # All names in one block of memory, which processes share as they do the positions.
        block = bytearray(os.fsencode("\0".join([*names, ""])))
        self.names = torch.frombuffer(block, dtype=torch.uint8)
        self.name_ends = torch.nonzero(self.names == 0)[:, 0]

    def place(self, name: str) -> Path | str:
        """Where the picture of a name lies."""
        return f"{self.root}/{name}"

    def read(self, index: int) -> np.ndarray:
        return self.with_file(index, lambda file: decode(file, self.decoding))

    def content(self, index: int) -> bytes:
        return self.with_file(index, lambda file: file.read())

    def with_file(self, index: int, use):
        """What use(file) makes of the picture's file, which is tried again while all are away."""
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                with self.open(index) as file:
                    return use(file)
            except MemoryError:
                raise  # not the picture's fault
            except Exception as error:  # decoders raise errors of all kinds
                why, path = reason(error), self.place(self.name(index))
                if not self.is_outage(error):
                    advice = "raise it, or " * isinstance(error, TooLarge) + self.remedy
                    sentence = f"cannot read the picture {path}: {why}; {advice}"
                    raise BrokenPicture(sentence, why) from error
                # A file server that is away for a moment breaks no picture.
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"cannot read {path} for {OUTAGE_SECONDS:g} s ({why}): {self.away}; "
                        "bring it back and start again with --resume auto"
                    ) from error
                time.sleep(1)

    def is_outage(self, error: Exception) -> bool:
        """Whether the error is of the machine or of the place of all, not of one picture."""
        return errno.errorcode.get(getattr(error, "errno", None)) in OUTAGES

    def orientation(self, index: int) -> int:
        """The picture's orientation tag; 1 where it lies as it is stored, or cannot be read."""
        try:
            with self.open(index) as file, Image.open(file) as image:
                # Pillow decodes a PNG to look for the tag.
                if image.format == "PNG" and "exif" not in image.info:
                    return 1
                return image.getexif().get(ORIENTATION, 1)
        except Exception:  # as above
            return 1

    def file_names(self) -> list[str]:
        names = os.fsdecode(self.names[:-1].numpy().tobytes()).split("\0")
        return [names[i] for i in self.positions.tolist()]

    def stored_name(self, index: int) -> bytes:
        position = int(self.positions[index])
        start = int(self.name_ends[position - 1]) + 1 if position else 0
        return self.names[start : self.name_ends[position]].numpy().tobytes()

    def name(self, index: int) -> str:
        """Its path below the folder, with bytes that are no text as \\x.."""
        return printable(self.stored_name(index).decode(errors="backslashreplace"))


class FolderPictures(FilePictures):
    """Pictures in files below a folder, or below several."""

    def place(self, name: str) -> Path:
        begins = next(begin for begin in self.folders if name.startswith(begin))
        return self.folders[begins] / name.removeprefix(begins)

    def path(self, index: int) -> Path:
        return self.place(os.fsdecode(self.stored_name(index)))

    def name_of(self, path: str) -> str:
        """The name that a picture at this absolute path has; any other text as it is."""
        for begin, folder in self.folders.items():
            for root in (os.path.abspath(folder), os.path.realpath(folder)):
                if path.startswith(root + os.sep):
                    return begin + path[len(root) + 1 :].replace(os.sep, "/")
        return path

    def open(self, index: int) -> BinaryIO:
        return open(self.path(index), "rb")

    def is_outage(self, error: Exception) -> bool:
        gone = isinstance(error, FileNotFoundError)
        gone = gone and not all(folder.is_dir() for folder in self.folders.values())
        return gone or super().is_outage(error)


def joined(parts: list[FolderPictures]) -> FolderPictures:
    """The pictures of several folders; they are labelled where these have the same classes."""
    names = [f"{number}/{name}" for number, part in enumerate(parts) for name in part.file_names()]
    labels, classes = None, parts[0].classes
    if classes and all(part.classes == classes for part in parts):
        labels = np.concatenate([part.labels for part in parts])
    left_out = sum((part.left_out for part in parts), Counter())
    root, how = parts[0].root, parts[0].decoding
    pictures = FolderPictures(root, names, labels, () if labels is None else classes, how, left_out)
    pictures.folders = {f"{number}/": part.root for number, part in enumerate(parts)}
    return pictures


def reason(error: Exception) -> str:
    """Why a picture could not be read, in one line that is the same each time."""
    if isinstance(error, UnidentifiedImageError):  # Pillow's text holds an address
        return "not a picture in a format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Some libraries put into it all that they have read.
    return str(error).partition("\n")[0][:200] or type(error).__name__


class ArrayPictures(Pictures):
    """Pictures in memory, arrays [H, W, C] or PIL images, with the label of each or none."""

    def __init__(self, array, labels=None, classes: list[str] = (), channels: int = 3):
        super().__init__(len(array), labels, classes, channels)
        self.array = array

    def read(self, index: int) -> np.ndarray:
        try:
            return with_channels(self.array[int(self.positions[index])], self.channels)
        except OSError as error:
            raise BrokenPicture(f"picture {self.name(index)}: {error}", str(error)) from error
