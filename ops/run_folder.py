"""The folder of a run: a name of its own, one run at a time, and where its numbers come from."""

import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TextIO

from ops.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

LOCK = "run.lock"
PACKAGES = ("torch", "torchvision", "numpy", "Pillow", "timm", "tensorboardX")


def new_run_folder(parent: Path) -> Path:
    """parent/<date-time>, with microseconds: two runs never share one. Journal makes it."""
    return parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")


def lock_folder(folder: Path) -> TextIO:
    """Keep the run folder for this process, as long as the file that comes back stays open."""
    # POSIX locks belong to the process, so loader processes do not inherit them. One such file
    # is opened once only: closing a second one would drop the lock of the first.
    lock = open(folder / LOCK, "w")
    try:
        if fcntl is None:
            return lock
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(
            f"the run in {str(folder)!r} is still going on in another process; wait for its end, "
            "or start a new run without --resume auto"
        ) from error
    except OSError:
        pass  # a file system without locks
    return lock


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
