"""Files that are written whole or not at all."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content, previous: Path | None = None) -> None:
    """Write bytes so that a reader sees the old file or the new one, never a part of it.

    previous: the name that the old file is kept under. Raises OSError where the new one cannot be
    written; the old file is then still there, under its own name or under `previous`.
    """
    partial = partial_name(path)
    try:
        # The folder may have been lost since the run began.
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file, for a rename stays on one disk; flushed, so that a crash of the machine
        # after the rename does not leave an empty file.
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Between these two renames only `previous` and the partial file exist.
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
    except OSError:
        # A full disk: give the space back.
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, content: dict) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def duplicate(path: Path, copy: Path) -> None:
    """Give a written file a second name, whole or not at all.

    Where the file system has links, this takes no space.
    """
    # What a run that was killed left behind would stop the link.
    partial = partial_name(copy)
    with suppress(FileNotFoundError):
        partial.unlink()
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    os.replace(partial, copy)


def partial_name(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
