"""A run gets one signal at any moment of its life; it ends with a code that says what happened.

75: stopped and saved.  0: the run had ended before.  The signal's own: nothing to save was there
yet.  Never anything else, never a traceback, and no process stays behind.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.background import (
    ERR,
    OUT,
    ROOT,
    group_of,
    loaders_of,
    run_folder,
    start,
    started_by,
)
from benchmarks.measure import print_head, print_row
from ops import checkpoint
from ops.errors import EXIT_STOPPED

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
TARGETS = ("parent", "child", "group")  # child: of the run; of one process, a loader process
BEGINNING, BANK, EPOCH, SAVE, END = PLACES = (
    "start-up of the process", "start-up of the bank", "epoch", "save", "end",
)  # fmt: skip
SHORT = [
    *("--dataset", "folder", "--image_size", "16", "--batch_size", "16", "--cluster", "32"),
    *("--init_steps", "4", "--epochs", "3", "--save_minutes", "0.0005"),
]
NUM_PICTURES = 64
A_SAVE = 0.05  # seconds, about
LOOK = 0.005  # seconds between two looks at a run
PATIENCE = 120  # seconds in which a run ends that was asked to


@dataclass(frozen=True)
class Answer:
    """What became of a run that got a signal."""

    place: str  # where the run was; empty: it had ended, or there was nobody to send it to
    code: int
    faults: tuple[str, ...]
    said: str  # on stderr


def words_of(processes: int, pictures: Path) -> list[str]:
    """A short run, with a loader process for each of its processes.

    Loader processes of several processes are slow to start, so there they load no kNN score.
    """
    knn = "3" if processes == 1 else "0"
    number = str(processes)
    words = ["--nproc", number, "--workers", number, "--knn_freq", knn, "--data", str(pictures)]
    return [*SHORT, *words]


def write_pictures(folder: Path) -> None:
    """Noise in two classes, for training and validation."""
    rng = np.random.default_rng(0)
    for index in range(NUM_PICTURES):
        for split in ("train", "val"):
            below = folder / split / str(index % 2)
            below.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(below / f"{index}.png")


def where(folder: Path) -> str:
    """One of PLACES, as far as can be seen from the run's files."""
    printed = (folder / OUT).read_text()
    if "run folder:" not in printed:
        return BEGINNING
    if "finished:" in printed or "stopped by" in printed:
        return END
    run = run_folder(folder)
    if run is None:
        return BANK
    if any(run.glob("*.partial")):
        return SAVE
    return EPOCH if '"train"' in (run / "metrics.jsonl").read_text() else BANK


def lengths(words: list[str]) -> dict[str, float]:
    """Seconds that a run in peace spends in each of PLACES."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(folder, words)
        spent = Counter({SAVE: A_SAVE})
        before = time.monotonic()
        while process.poll() is None:
            time.sleep(LOOK)
            now, place = time.monotonic(), where(folder)
            spent[place if place != SAVE else EPOCH] += now - before
            before = now
        assert process.returncode == 0, (folder / ERR).read_text()
    return spent


def wait_for_moment(process, folder: Path, place: str, pause: float) -> None:
    """Return `pause` seconds after the run has come to the place, or when it has ended."""
    order = PLACES.index(place)
    while process.poll() is None:
        now = where(folder)
        if now == place or (place != SAVE and PLACES.index(now) > order):
            break
        time.sleep(LOOK)
    end = time.monotonic() + pause
    while process.poll() is None and time.monotonic() < end:
        time.sleep(LOOK)


def send(process, folder: Path, number: signal.Signals, target: str, processes: int, rng) -> str:
    """Send the signal; where the run was then, or nothing where there was nobody to get it."""
    while process.poll() is None:
        place = where(folder)
        if target == "child":
            found = loaders_of(process) if processes == 1 else started_by(process)
        else:
            found = [process.pid]
        try:
            if target == "group":
                os.killpg(process.pid, number)
            elif found:
                os.kill(rng.choice(found), number)
        except ProcessLookupError:  # it has just ended
            continue
        if found:
            return place
        time.sleep(LOOK)
    return ""


def judge(
    process: subprocess.Popen, folder: Path, place: str, number: signal.Signals, loader: bool
) -> Answer:
    """Wait for the end of the run and compare it with what is promised."""
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        return Answer(place, code, (f"not ended after {PATIENCE} s",), (folder / ERR).read_text())

    printed, said = (folder / OUT).read_text(), (folder / ERR).read_text()
    faults = []
    finished = code == 0 and "finished:" in printed
    stopped = code == EXIT_STOPPED and not loader
    own = place == BEGINNING and not loader and code in (-number, 128 + number)
    if ("Traceback" in said or "Fatal Python" in said) and not before_the_first_line(place, said):
        faults.append("traceback")
    elif not (finished or stopped or own or before_the_first_line(place, said)):
        faults.append(f"exit code {code}")
    if stopped and place in (EPOCH, SAVE) and not list(folder.rglob(checkpoint.LAST)):
        faults.append("nothing saved")
    deadline = time.monotonic() + 10
    while group_of(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    if group_of(process):
        faults.append("processes left behind")
        os.killpg(process.pid, signal.SIGKILL)
    return Answer(place, code, tuple(faults), said)


def before_the_first_line(place: str, said: str) -> bool:
    """Whether Ctrl-C came while Python itself started, or the script's first line imported
    ops.signals. What Python then says and returns is its own affair.
    """
    if place != BEGINNING or "KeyboardInterrupt" not in said or "multiprocessing" in said:
        return False
    return str(ROOT) not in said or "from ops.signals import" in said


def answer(
    pictures: Path, number: signal.Signals, target: str, processes: int, place: str, pause, rng
) -> Answer:
    """Start a run, send it the signal `pause` seconds after it has come to the place, and wait."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(folder, words_of(processes, pictures))
        wait_for_moment(process, folder, place, pause)
        sent_at = send(process, folder, number, target, processes, rng)
        return judge(process, folder, sent_at, number, target == "child" and processes == 1)


def print_signals(processes: tuple[int, ...], signals: int, rng: random.Random) -> bool:
    """A row for each signal, target and number of processes; whether all ended as promised."""
    all_rows = list(product(SIGNALS, TARGETS, processes))
    rows = (all_rows + rng.choices(all_rows, k=max(0, signals - len(all_rows))))[:signals]
    print_head("signal", "target", "processes", "where it came", "exit code", "not as promised")
    good = True
    with tempfile.TemporaryDirectory() as name:
        pictures = Path(name)
        write_pictures(pictures)
        spent = {R: lengths(words_of(R, pictures)) for R in processes}
        for row, count in Counter(rows).items():
            good &= print_answers(pictures, row, count, spent[row[2]], rng)
    return good


def print_answers(pictures: Path, row: tuple, count: int, spent: dict, rng) -> bool:
    """The row of `count` signals of one kind; whether all ended as promised."""
    name, target, processes = row
    answers = []
    loader = target == "child" and processes == 1
    for _ in range(count):
        place = rng.choice((BANK, EPOCH, SAVE) if loader else PLACES)  # where there is one
        pause = rng.uniform(0, spent[place])
        answers.append(answer(pictures, signal.Signals[name], target, processes, place, pause, rng))
    places = "; ".join(given.place or "it had ended" for given in answers)
    codes = "; ".join(str(given.code) for given in answers)
    faults = [fault for given in answers for fault in given.faults]
    print_row(*row, places, codes, ", ".join(faults) or "nothing")
    for given in answers:
        if given.faults:
            print(f"{row}, {given.place}:\n{given.said[-3000:]}", file=sys.stderr, flush=True)
    return not faults
