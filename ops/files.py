"""Files that are written whole or not at all."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content, previous: Path | None = None) -> None:
    """Write bytes beside, flush to disk, rename: a reader sees the old file or the new one, never a
    part. previous: the name under which the old file is kept.

    Raises OSError where it cannot be written; the old file is then still there, under its own name
    or that of `previous`.
    """
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # it may have been lost meanwhile
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, content: dict) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def duplicate(path: Path, copy: Path) -> None:
    """Give a written file a second name, whole or not at all; without a second copy where the file
    system has links.
    """
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
