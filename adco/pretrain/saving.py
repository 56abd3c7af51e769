"""When a run saves, under which names, and what happens when it cannot."""

import time
from pathlib import Path

from ops import checkpoint
from ops.errors import RunFailed
from ops.files import NOT_SAVED, duplicate
from ops.journal import Journal


class Checkpoints:
    """The checkpoints of one run folder, written by the first process.

    checkpoint_last.pth.tar is the newest; the one before it stays as checkpoint_previous.pth.tar.
    source: what the run goes on from. Another last one was passed over as damaged, and must not
    take the place of the one before it.
    """

    def __init__(self, folder: Path, minutes: float, journal: Journal, source: Path | None = None):
        self.folder, self.minutes, self.journal = folder, minutes, journal
        self.last = folder / checkpoint.LAST
        self.last_is_good = source == self.last
        self.failed = False  # whether the newest state could not be written
        # The clock of --save_minutes.
        self.saved_at = time.monotonic()

    def age(self) -> float:
        """Minutes since the run was last saved, or begun."""
        return (time.monotonic() - self.saved_at) / 60

    def due(self) -> bool:
        """Whether the time is up."""
        return 0 < self.minutes <= self.age()

    def save(self, state: dict, more_names: tuple[str, ...] = ()) -> bool:
        """Write the last checkpoint, and the same under more names. True where that was done.

        A failure does not end the run: it is told, what was saved before stays, and the next save
        tries again.
        """
        path, self.failed = self.last, True
        try:
            # The last one becomes the one before it, unless it is known to be damaged.
            previous = self.folder / checkpoint.PREVIOUS if self.last_is_good else None
            checkpoint.save(state, path, previous)
            self.failed, self.last_is_good = False, True
            # Further names, which run.finish_epoch decides, are hard links where that can be.
            for name in more_names:
                path = self.folder / name
                duplicate(self.last, path)
        except OSError as error:
            self.journal.warn(NOT_SAVED.format(path, error))
            return False
        finally:
            self.saved_at = time.monotonic()
        return True

    def check(self) -> None:
        """Raise RunFailed where the newest state is not on disk."""
        if self.failed:
            raise RunFailed(
                f"trained to the end, but the last state could not be saved as {self.last}; make "
                "room and start again with --resume auto, from the checkpoint before"
            )
