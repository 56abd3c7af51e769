"""The folder of a run: a name of its own, one run at a time, and where its numbers come from."""

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TextIO

from ops.errors import InputError, printable
from ops.waiting import waiting_for

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

LOCK = "run.lock"
LOCK_SECONDS = 120.0  # for which a lock of somebody else is tried again
PACKAGES = ("torch", "torchvision", "numpy", "Pillow", "timm", "tensorboardX")


def new_run_folder(parent: Path) -> Path:
    """parent/<date-time>, with microseconds: two runs never share one. Journal makes it."""
    return parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")


def lock_folder(folder: Path) -> TextIO:
    """Keep the run folder for this process, as long as the file that comes back stays open.

    The file says who keeps it. Raises InputError where another one does, for LOCK_SECONDS.
    """
    # POSIX locks belong to the process, so loader processes do not inherit them. One such file
    # is opened once only: closing a second one would drop the lock of the first.
    lock, deadline = open(folder / LOCK, "a+"), time.monotonic() + LOCK_SECONDS

    def holder() -> str:
        lock.seek(0)
        return printable(lock.read(200)) or "another process"

    # A run that has just been told to stop may still save, and a file server keeps the lock of a
    # machine that is gone for a while.
    with waiting_for(lambda: f"the run in {str(folder)!r}, which is still going on in {holder()}"):
        while not locked(lock):
            if time.monotonic() > deadline:
                why = f"the run in {str(folder)!r} is still going on in {holder()}"
                remedy = "wait for its end, or start a new run without --resume auto"
                raise InputError(f"{why}; {remedy}")
            time.sleep(0.1)
    job = os.environ.get("SLURM_JOB_ID")
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}{f', SLURM job {job}' if job else ''}")
    lock.flush()
    return lock


def locked(file: TextIO) -> bool:
    """Whether the file is this process's now; no other one wants it where there are no locks."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # any other is of a file system without locks
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True


def provenance() -> dict:
    """What else decides a number: versions, commit, command line, machine."""
    # Installed, this file is adco.ops.run_folder, and adco has a version.
    versions = {"python": platform.python_version()}
    for name in (*__name__.split(".")[:-2], *PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions,
        "machine": platform.platform(),
    }


def commit() -> str | None:
    """The commit of this program, wherever it was started from; None where git does not know it."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    asked = dict(capture_output=True, text=True, check=True, timeout=10)
    with suppress(OSError, subprocess.SubprocessError):
        # The folder of an installed package may lie inside a repository of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], **asked)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(describe, **asked).stdout.strip()
    return None
