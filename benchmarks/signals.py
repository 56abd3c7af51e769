"""A run gets one signal at any moment of its life; it ends with a code that says what happened.

75: stopped and saved.  0: the run had ended before.  The signal's own: there was nothing to save.
Never anything else, never a traceback, and no process stays behind. A loader process is deaf: the
run goes on to its end.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple

from benchmarks.background import (
    ERR,
    OUT,
    ROOT,
    faults_of,
    is_left,
    loaders_of,
    run_folder,
    start,
    started_by,
)
from benchmarks.measure import print_head, print_row
from ops import checkpoint
from ops.errors import EXIT_STOPPED

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
TARGETS = ("parent", "child", "group")  # child: of the run; of one process, a loader process
PLACES = BEGINNING, BANK, EPOCH, END = ("start of the process", "start-up", "epoch", "end")
PATIENCE = 120  # seconds in which a run ends that was asked to


class Answer(NamedTuple):
    """What became of a run that got a signal."""

    place: str  # where the run was; empty: there was nobody left to send it to
    code: int
    faults: list[str]
    said: str  # on stderr


def begin(folder: Path, processes: int) -> subprocess.Popen:
    """A short run, with a loader process for each of its processes."""
    words = ["--init_steps", "4", "--epochs", "1", "--knn_freq", "0", "--save_minutes", "0.0005"]
    return start(folder, [*words, "--nproc", str(processes), "--workers", str(processes)])


def where(folder: Path) -> str:
    """One of PLACES, as far as can be seen from the run's files."""
    printed, run = (folder / OUT).read_text(), run_folder(folder)
    if "run folder:" not in printed or run is None:
        return BEGINNING
    if "finished:" in printed or "stopped by" in printed:
        return END
    return EPOCH if '"train"' in (run / "metrics.jsonl").read_text() else BANK


def answer(
    number: signal.Signals, target: str, processes: int, place: str, pause: float, rng
) -> Answer:
    """Start a run, send it the signal `pause` seconds after it has come to the place, and wait."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = begin(folder, processes)
        while process.poll() is None and PLACES.index(where(folder)) < PLACES.index(place):
            time.sleep(0.005)
        time.sleep(pause)
        sent_at = send(process, folder, number, target, processes, rng)
        deaf = target == "child" and processes == 1
        return judge(process, folder, sent_at, number, deaf)


def send(process, folder: Path, number: signal.Signals, target: str, processes: int, rng) -> str:
    """Send the signal; where the run was then, or nothing where it had ended."""
    while process.poll() is None:
        place = where(folder)
        children = loaders_of(process) if processes == 1 else started_by(process)
        try:
            if target == "group":
                os.killpg(process.pid, number)
            elif target == "parent" or children:
                os.kill(process.pid if target == "parent" else rng.choice(children), number)
            else:
                time.sleep(0.005)  # there is no child yet
                continue
            return place
        except ProcessLookupError:  # it has just ended
            continue
    return ""


def judge(process, folder: Path, place: str, number: signal.Signals, deaf: bool) -> Answer:
    """Wait for the end of the run, and compare it with what is promised."""
    faults = []
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        faults.append(f"not ended after {PATIENCE} s")
    deadline = time.monotonic() + 10
    while is_left(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_left(process):
        faults.append("processes left behind")
        os.killpg(process.pid, signal.SIGKILL)
    code, said = process.wait(), (folder / ERR).read_text()
    own = (-number, 128 + number) if place == BEGINNING else ()
    # Ctrl-C while Python itself starts, before the first line of the script: its own affair.
    if not (place == BEGINNING and "KeyboardInterrupt" in said and str(ROOT) not in said):
        faults += faults_of(folder, code, (0,) if deaf else (0, EXIT_STOPPED, *own))
    if code == EXIT_STOPPED and place == EPOCH and not list(folder.rglob(checkpoint.LAST)):
        faults.append("nothing saved")
    return Answer(place, code, faults, said)


def print_signals(signals: int, rng: random.Random) -> bool:
    """A row for each signal, all combinations in turn; whether all went as promised."""
    print_head("signal", "target", "processes", "where it came", "exit code", "not as promised")
    rows = list(product(SIGNALS, TARGETS, (1, 2)))
    good = True
    for i in range(signals):
        name, target, number = row = rows[i] if i < len(rows) else rng.choice(rows)
        place, pause = rng.choice(PLACES), rng.uniform(0, 3)
        given = answer(signal.Signals[name], target, number, place, pause, rng)
        where, faults = given.place or "it had ended", ", ".join(given.faults) or "nothing"
        print_row(*row, where, given.code, faults)
        if given.faults:
            print(f"{row}, {where}:\n{given.said[-3000:]}", file=sys.stderr, flush=True)
        good &= not given.faults
    return good
