"""A small run of main_adco.py in the background: start it, wait until it has come to a place, send
it a signal, and judge how it ends.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from adco.data.datasets import load_splits
from benchmarks import ROOT
from ops import checkpoint
from ops.errors import EXIT_FAILED, EXIT_STOPPED

RUN = [
    *("--dataset", "folder", "--recipe", "published", "--report_epochs", "0"),
    *("--arch", "resnet10", "--image_size", "20", "--cluster", "128"),
    *("--batch_size", "24", "--init_steps", "6", "--print_freq", "1", "--workers", "1"),
    *("--knn_freq", "9", "--save_minutes", "0.005", "--save_freq", "99", "--resume", "auto"),
]
OUT, ERR = "stdout", "stderr"  # files in the folder of a run, of its last start
TARGETS = ("parent", "child", "group")  # child: of the run; of one process, a loader process
BEGINNING, FIRST_STEP, EPOCH = "start of the process", "start-up", "epoch"
PLACES = {
    BEGINNING: "",
    "preparation": "run folder:",
    FIRST_STEP: r"(Start-up|Epoch): \[",
    EPOCH: r"Epoch: \[",
    "end": "finished:|stopped by",
}  # and what a run has said there
LAST_LINES = {
    0: "finished: ", EXIT_STOPPED: "stopped by ", EXIT_FAILED: "main_adco.py: error: process "
}  # fmt: skip
PATIENCE = 300  # seconds in which a run ends that was asked to


class Ending(NamedTuple):
    """What became of a run that got a signal."""

    place: str  # where the run was; empty: there was nobody left to send it to
    code: int
    faults: list[str]
    said: str  # on stderr


def write_digits(root: Path, train: int, val: int = 5, side: int = 28) -> Path:
    """Real digits as PNG files of side x side pixels: train/{0,1,2} and val/{0,1,2} with so many
    pictures each.
    """
    splits = load_splits("digits", "")
    for split, pictures, count in (("train", splits.train, train), ("val", splits.val, val)):
        for digit in range(3):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index in np.flatnonzero(pictures.labels == digit)[:count]:
                picture = Image.fromarray(pictures.read(index)).resize((side, side))
                picture.save(folder / f"{index:04d}.png")
    return root


def python(words: list, folder: Path, out: str, err: str, before=(), **more) -> subprocess.Popen:
    """Start Python in a folder, on one thread and without a GPU. What it says is added to two
    files there.  before: words of a command that Python is the last part of.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (folder / out).open("a") as stdout, (folder / err).open("a") as stderr:
        return subprocess.Popen(
            [*before, sys.executable, *words],
            cwd=folder, env=environment, stdout=stdout, stderr=stderr, **more,
        )  # fmt: skip


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    """Start the run in a process group of its own. words: also the --data."""
    for name in (OUT, ERR):
        (folder / name).unlink(missing_ok=True)
    command = [ROOT / "main_adco.py", *RUN, *words, "--save_path", folder]
    return python(command, folder, OUT, ERR, start_new_session=True)


def finish(folder: Path, words: list[str]) -> None:
    """Run to the end, undisturbed; saves only after epochs."""
    code = start(folder, [*words, "--save_minutes", "0"]).wait(timeout=900)
    assert code == 0, (code, (folder / ERR).read_text())


def run_folder(folder: Path) -> Path | None:
    """The newest: a run that was killed before its first save is started anew."""
    found = [path.parent for path in folder.rglob("metrics.jsonl")]
    return max(found, key=lambda run: run.stat().st_ctime, default=None)


def started_by(process: subprocess.Popen, what: str = "spawn_main") -> list[int]:
    """Processes that it has started and not outlived, by what is on their command line: those of
    the run are spawned, its loader processes forked.
    """
    found = []
    with suppress(OSError):  # one has just ended
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if what in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


def where(folder: Path) -> list[str]:
    """The PLACES that it has come to, as far as can be seen from what it has said."""
    printed = (folder / OUT).read_text()
    return [place for place, sign in PLACES.items() if re.search(sign, printed)]


def wait_until(done: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Until it is done, or the time is up; whether it is done."""
    end = time.monotonic() + seconds
    while not (is_done := done()) and time.monotonic() < end:
        time.sleep(0.005)
    return is_done


def interrupt(
    folder: Path, words: list[str], number: signal.Signals, target: str, rng: random.Random,
    place: str, pause: float, in_save: bool = False,
) -> Ending:  # fmt: skip
    """Start a run; `pause` seconds after it has come to the place (in_save: then in its next save)
    send it the signal. Wait for its end, and compare that with what is promised.
    """
    process, faults = start(folder, words), []
    alone = "--nproc" not in words or "--nproc 1" in " ".join(words)
    has_ended = lambda: process.poll() is not None  # noqa: E731
    wait_until(lambda: has_ended() or place in where(folder))
    time.sleep(pause)
    wait_until(lambda: has_ended() or not in_save or any(folder.rglob("*.partial")))
    place, pid = send(process, folder, number, target, alone, rng)
    if not wait_until(has_ended):
        faults.append(f"not ended after {PATIENCE} s")
    if not wait_until(lambda: is_gone(process), 10):
        faults.append("processes left behind")
        os.killpg(process.pid, signal.SIGKILL)

    # What may follow. A loader process is deaf; 0: the run had ended before.
    code, said, codes = process.wait(), (folder / ERR).read_text(), {0, EXIT_STOPPED}
    if number == signal.SIGKILL:
        codes = {0, -number if pid == process.pid else EXIT_FAILED}
    elif target == "child" and alone:
        codes = {0}
    elif place == BEGINNING:
        codes |= {-number, 128 + number}
    last = (said if code == EXIT_FAILED else (folder / OUT).read_text()).rstrip().split("\n")[-1]
    # Ctrl-C while Python itself starts, before the first line of the script: its own affair.
    if not (place == BEGINNING and "KeyboardInterrupt" in said and str(ROOT) not in said):
        faults += [f"exit code {code}"] * (code not in codes)
        faults += [f"last line {last!r}"] * (not last.startswith(LAST_LINES.get(code, "")))
        faults += ["traceback"] * ("Traceback" in said or "Fatal Python" in said)
    if code == EXIT_STOPPED and place == EPOCH and not list(folder.rglob(checkpoint.LAST)):
        faults.append("nothing saved")
    return Ending(place, code, faults, said)


def send(process, folder: Path, number: int, target: str, alone: bool, rng) -> tuple[str, int]:
    """Send the signal; where the run was then and who got it, or nothing where it had ended."""
    while process.poll() is None:
        place = where(folder)[-1]
        children = started_by(process, "main_adco.py" if alone else "spawn_main")
        found = {"parent": [process.pid], "child": children, "group": [-process.pid]}
        found["any"] = found["parent"] + (children if not alone else [])
        with suppress(ProcessLookupError, IndexError):  # it has just ended, or has no child yet
            os.kill(pid := rng.choice(found[target]), number)
            return place, pid
        time.sleep(0.005)
    return "", 0


def is_gone(process: subprocess.Popen) -> bool:
    """Whether none of the group of a run that was started here is there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return False
    return True
