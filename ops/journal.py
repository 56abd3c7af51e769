"""What a run says and writes: console, progress bar, JSON lines, TensorBoard. Rank 0 only."""

import json
import platform
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from ops.errors import InputError

PACKAGES = ("torch", "torchvision", "numpy", "Pillow", "tensorboardX")


def new_run_folder(parent: Path) -> Path:
    """Make and return parent/<date-time>; two runs of the same second get two folders."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        folder = parent / (stamp if attempt == 0 else f"{stamp}_{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not parent.is_dir():
                break
        except OSError as error:
            raise InputError(
                f"cannot write the run folder {str(folder)!r}: {error}; choose another --save_path"
            ) from error
    raise InputError(
        f"cannot write the run folder below {str(parent)!r}; choose another --save_path"
    )


def provenance() -> dict:
    """What else decides a number: versions, commit, command line, machine."""
    here = Path(__file__).resolve().parent
    commit = None
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(
            git, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit,
        "versions": versions,
        "machine": platform.platform(),
    }


class Journal:
    """Speaks and writes for the whole run. With folder None (every process but the first) it is
    silent.

    Files: config.json, metrics.jsonl (a line per log step and per epoch), TensorBoard events.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.bar = None
        if folder is None:
            return
        from tensorboardX import SummaryWriter

        try:
            self.lines = open(folder / "metrics.jsonl", "a", buffering=1)
            self.board = SummaryWriter(str(folder))
        except OSError as error:
            raise InputError(f"cannot write in the run folder {str(folder)!r}: {error}") from error

    def write_config(self, config: dict) -> None:
        """Keep the configuration and everything else that decides the numbers, as JSON."""
        if self.folder is not None:
            text = json.dumps({"config": config, **provenance()}, indent=2)
            (self.folder / "config.json").write_text(text + "\n")

    def say(self, text: str) -> None:
        if self.folder is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def warn(self, text: str) -> None:
        if self.folder is not None:
            tqdm.write(f"WARNING: {text}", file=sys.stderr)

    def record(self, kind: str, step: int, values: dict) -> None:
        """One JSON line {"kind", "step", values...}, and a TensorBoard scalar of each number."""
        if self.folder is None:
            return
        self.lines.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            if name != "epoch" and isinstance(value, (int, float)):
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def open_bar(self, total: int, title: str) -> None:
        """A progress bar where stderr is a terminal; elsewhere `progress` prints lines."""
        if self.folder is not None and sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=title, unit="step", dynamic_ncols=True, leave=False)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def progress(self, line: str, **shown: str) -> None:
        """The state of an epoch: beside the bar, or as a line of its own."""
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
        else:
            self.say(line)

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def close(self) -> None:
        self.close_bar()
        if self.folder is not None:
            self.lines.close()
            self.board.close()


class Stopwatch:
    """Seconds since it was started or last read."""

    def __init__(self):
        self.last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        return elapsed
