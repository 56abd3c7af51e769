"""Files that are written whole or not at all."""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from ops.errors import RunFailed, some
from ops.waiting import waiting_for

NOT_SAVED = (
    "NOT SAVED: {} could not be written ({}). The run goes on and tries again at the next save; "
    "make room, or restore the folder"
)


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
        with waiting_for(lambda: f"the disk, to write {path}"), open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Between these two renames only `previous` and the partial file exist.
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
    except BaseException:
        # A full disk, Ctrl-C: give the space back.
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def told_if_not_written(what: str):
    """An OSError in the block ends the run. what: such as NOT WRITTEN: FILE."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{what} could not be written ({error}); make room, start again") from error


def json_bytes(content: dict) -> bytes:
    return (json.dumps(finite_or_none(content), indent=2) + "\n").encode()


def finite_or_none(value, default=None):
    """The value as JSON gives it back, with None for each number in it that is not finite: JSON
    has no nan. default: see json.dumps.
    """
    return json.loads(json.dumps(value, default=default), parse_constant=lambda _: None)


class RunFiles:
    """Files that a run writes as it goes, each whole or not at all.

    What cannot be written (full disk, lost folder) is told, kept in memory, and tried again with
    the next file: the run goes on.

    warn: called with each sentence to the user.
    """

    def __init__(self, warn):
        self.warn = warn
        self.waiting: dict[Path, bytes] = {}

    def write(self, files: dict[Path, bytes]) -> None:
        self.waiting |= files
        for path, content in list(self.waiting.items()):
            try:
                write_whole(path, content)
                del self.waiting[path]
            except OSError as error:
                fault = error
        if self.waiting:
            self.warn(NOT_SAVED.format(self._names(), fault))

    def check(self) -> None:
        """Raise RunFailed where a file is not on disk."""
        if self.waiting:
            raise RunFailed(f"the run is over, but could not save {self._names()}; make room first")

    def _names(self) -> str:
        return some([str(path) for path in self.waiting], 3)


def duplicate(path: Path, copy: Path) -> None:
    """Give a written file a second name, whole or not at all.

    Where the file system has links, this takes no space.
    """
    # What a run that was killed left behind would stop the link.
    partial = partial_name(copy)
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    os.replace(partial, copy)


def partial_name(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
