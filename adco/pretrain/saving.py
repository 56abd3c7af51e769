"""When a run saves, under which names, and what happens when it cannot; and when it is drawn."""

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from ops import checkpoint
from ops.errors import RunFailed, shown
from ops.files import NOT_SAVED, duplicate
from ops.journal import Journal
from ops.signals import requests_blocked
from ops.waiting import waiting_for
from ops.workers import cores_of_process


class Checkpoints:
    """The checkpoints of one run folder, written by the first process.

    checkpoint_last.pth.tar is the newest; the one before it stays as checkpoint_previous.pth.tar.
    source: what the run goes on from. Another last one was passed over as damaged, and must not
    take the place of the one before it.
    folder None: of another process, which writes nothing.
    """

    def __init__(
        self, folder: Path | None, minutes: float, journal: Journal, source: Path | None = None
    ):
        self.folder, self.minutes, self.journal = folder, minutes, journal
        self.last = (folder or Path(os.devnull)) / checkpoint.LAST
        self.last_is_good = source == self.last
        self.failed = False  # whether the newest state could not be written
        self.writing: threading.Thread | None = None
        self.complaint = ""  # about what was written, not told yet
        # The clock of --save_minutes: when the newest state was taken.
        self.saved_at = time.monotonic()

    def age(self) -> float:
        """Minutes since the run was last saved, or begun; 0 where this process writes nothing."""
        return (time.monotonic() - self.saved_at) / 60 if self.folder else 0.0

    def due(self) -> bool:
        """Whether the time is up. Tells what has become of the last save, once it is known."""
        if self.writing and not self.writing.is_alive():
            self.wait()
        return 0 < self.minutes <= self.age()

    def save(
        self, state: dict, more_names: tuple[str, ...] = (), in_background: bool = False
    ) -> bool:
        """Write the last checkpoint, and the same under more names. True where that was done, or
        goes on in a thread: in_background returns once the state is copied.

        A failure does not end the run: it is told, what was saved before stays, and the next save
        tries again.
        """
        if self.folder is None:
            return True
        self.wait()
        self.saved_at = time.monotonic()
        if in_background:
            try:
                state = checkpoint.snapshot(state)
            except (MemoryError, RuntimeError):  # no room for a copy, which may be pinned memory
                in_background = False
        arguments = state, more_names
        self.writing = threading.Thread(target=self.write, args=arguments, daemon=True)
        with requests_blocked():  # signals go to the main thread
            self.writing.start()
        return in_background or self.wait()

    def write(self, state: dict, more_names: tuple[str, ...]) -> None:
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
        except Exception as error:  # of the disk, as a rule; nobody else would hear of it
            self.complaint = NOT_SAVED.format(path, error)

    def wait(self) -> bool:
        """Until nothing is being written. False, and told, where that failed."""
        if self.writing:
            with waiting_for(lambda: f"the disk, to write {self.last}"):
                self.writing.join()
            self.writing = None
        complaint, self.complaint = self.complaint, ""
        if complaint:
            self.journal.warn(complaint)
        return not complaint

    def check(self) -> RunFailed | None:
        """The error to end with where the newest state is not on disk."""
        self.wait()
        why = f"trained to the end, but the last state could not be saved as {self.last}"
        remedy = "make room and start again with --resume auto, from the checkpoint before"
        return RunFailed(f"{why}; {remedy}") if self.failed else None


PATIENCE = 600  # seconds for the last page: all other processes wait for it


class Reports:
    """Draws the page of a run (adco.report) in a process of its own, which no step waits for.

    every: epochs between two pages; 0: never, -1: at the end alone. What fails is a warning.
    """

    def __init__(self, folder: Path, every: int, journal: Journal):
        self.every, self.journal, self.process = every, journal, None
        root = Path(__file__).resolve().parents[2]  # or site-packages
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = cores_of_process(1) if every == -1 else 1  # a launcher may have set one
        here = {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
        here["OMP_NUM_THREADS"] = str(threads)
        self.command = [sys.executable, "-m", "adco.report", str(folder)]
        self.environment = {**os.environ, **here}

    def draw(self, epochs: int) -> None:
        """Begin a page every so many epochs, unless the one before is not ready."""
        is_due = self.every > 0 and epochs % self.every == 0
        if is_due and (self.process is None or self.process.poll() is not None):
            silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with suppress(OSError):
                behind = ["nice"] if shutil.which("nice") else []  # all others come first
                words = [*behind, *self.command]
                self.process = subprocess.Popen(words, env=self.environment, **silent)

    def end(self) -> None:
        """Of a page that is being drawn."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def draw_last(self) -> None:
        """Draw the page of the finished run, and say its table."""
        if not self.every:
            return
        self.end()
        try:
            with waiting_for(lambda: "the page of the run (--report_epochs 0 leaves it out)"):
                done = subprocess.run(
                    self.command, env=self.environment, capture_output=True, text=True,
                    errors="replace", timeout=PATIENCE,
                )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return self.journal.warn(f"no page was drawn: {error}")
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return self.journal.warn(f"no page was drawn: {shown(why, 300)}")
        self.journal.say(done.stdout.rstrip())
