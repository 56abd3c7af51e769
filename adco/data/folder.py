"""The one reader of folders: what below a folder is a picture, and what is left out."""

import errno
import os
import posixpath
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from adco.data.identity import in_order
from ops.errors import InputError
from ops.run_folder import LOCK

# What file servers and archives leave behind; so does every folder that begins with a dot.
NOT_ENTERED = frozenset(
    ("@eaDir", "__MACOSX", "lost+found", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN",
     "System Volume Information")
)  # fmt: skip
FOLDER, LINK, PICTURE = "folder", "link to a folder", "picture"  # entries that are not left out
# Formats with a name in Pillow that are no pictures, or are drawn by another program.
NO_PICTURES = ("BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "EPS", "WMF")


class Found(NamedTuple):
    """What a folder holds."""

    names: list[str]  # of the pictures, relative to it, with /, in order
    left_out: Counter  # kind to number
    folders: list[str]  # those directly in it that were entered


def read_folder(root: Path, log_folder: Path | None = None) -> Found:
    """All pictures below a folder, by the endings of formats that Pillow reads.

    Links are followed, and each folder is entered once. The folders of runs are left out, and so is
    `log_folder`, below which this run writes. Raises InputError for a folder that cannot be listed.
    """
    formats = Image.registered_extensions().items()
    known = [end for end, kind in formats if kind in Image.OPEN and kind not in NO_PICTURES]
    suffixes = (".npy", *known)
    found = Found([], Counter(), [])
    # Folders, and why they are not to be entered (again).
    met = {folder_id(log_folder): "log folder"} if log_folder and log_folder.is_dir() else {}
    # Links come last: a folder is met under its own name first.
    folders, links = deque([""]), deque()
    while folders or links:
        below = folders.popleft() if folders else links.popleft()
        try:
            entries = list(os.scandir(root / below))
            this = folder_id(root / below)
            # The folder that was asked for is always entered.
            why_not = met.get(this) if below else None
            if below and any(entry.name == LOCK for entry in entries):
                why_not = "run folder"
            if why_not:
                found.left_out[why_not] += 1
                continue
            if this[1]:  # some file systems number nothing
                met[this] = "repeated folder"
            if below and "/" not in below:
                found.folders.append(below)
            kinds = defaultdict(list)
            for entry in entries:
                kinds[kind_of(entry, suffixes)].append(posixpath.join(below, entry.name))
        except OSError as error:
            fault = f"cannot list the folder {str(root / below)!r}: {error.strerror or error}"
            raise InputError(f"{fault}; make it readable, or take it away") from error
        folders += in_order(kinds.pop(FOLDER, []))
        links += in_order(kinds.pop(LINK, []))
        found.names.extend(kinds.pop(PICTURE, []))
        found.left_out.update({kind: len(names) for kind, names in kinds.items()})
    return found._replace(names=in_order(found.names))


def kind_of(entry: os.DirEntry, suffixes: tuple[str, ...]) -> str:
    """FOLDER, LINK, PICTURE, or why it is left out. Raises OSError where that cannot be told."""
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        is_folder = is_file = False  # links in a circle
    if entry.name.startswith("."):
        return "hidden folder" if is_folder else "hidden file"
    if is_folder and entry.name in NOT_ENTERED:
        return entry.name
    if is_folder:
        return LINK if entry.is_symlink() else FOLDER
    if not is_file:
        return "broken link" if entry.is_symlink() else "special file"
    if entry.name.lower().endswith(suffixes):
        return PICTURE
    return os.path.splitext(entry.name)[1].lower() or "without an ending"


def folder_id(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def counted(left_out: Counter) -> str:
    """What was left out: "3 .heic, 1 hidden folder"."""
    words = []
    for kind, count in sorted(left_out.items()):
        plural = "s" if count > 1 and kind.endswith(("folder", "file", "link")) else ""
        is_heic = kind in (".heic", ".heif")
        remedy = " (pip install pillow-heif, and they are read)" if is_heic else ""
        words.append(f"{count} {kind}{plural}{remedy}")
    return ", ".join(words)
