"""A small run of main_adco.py in the background, and how far it has come."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from adco.data.datasets import load_splits
from ops.errors import EXIT_FAILED, EXIT_STOPPED

ROOT = Path(__file__).resolve().parent.parent
RUN = [
    *("--dataset", "digits", "--recipe", "published", "--report_epochs", "0"),
    *("--arch", "resnet10", "--image_size", "20", "--cluster", "128"),
    *("--batch_size", "100", "--init_steps", "20", "--print_freq", "1", "--workers", "1"),
    *("--knn_freq", "2", "--save_minutes", "0.01", "--save_freq", "1", "--resume", "auto"),
]
OUT, ERR = "stdout", "stderr"  # files in the folder of a run, of its last start


def write_digits(root: Path, train: int, val: int = 5) -> Path:
    """Real digits as PNG files: train/{0,1,2} and val/{0,1,2} with so many pictures each."""
    splits = load_splits("digits", "")
    for split, pictures, count in (("train", splits.train, train), ("val", splits.val, val)):
        for digit in range(3):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index in np.flatnonzero(pictures.labels == digit)[:count]:
                Image.fromarray(pictures.read(index)).save(folder / f"{index:04d}.png")
    return root


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    """Start the run in a process group of its own. What it says goes into two files."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (folder / OUT).open("w") as out, (folder / ERR).open("w") as err:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "main_adco.py"), *RUN, *words, "--save_path", str(folder)],
            cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip


def finish(folder: Path, words: list[str]) -> None:
    """Run to the end, undisturbed."""
    code = start(folder, words).wait(timeout=900)
    assert code == 0, (code, (folder / ERR).read_text())


def run_folder(folder: Path) -> Path | None:
    """The newest: a run that was killed before its first save is started anew."""
    found = [path.parent for path in folder.rglob("metrics.jsonl")]
    return max(found, key=lambda run: run.stat().st_ctime, default=None)


def started_by(process: subprocess.Popen) -> list[int]:
    """Processes of the run, loader processes aside."""
    return [pid for pid, command in children(process) if "spawn_main" in command]


def loaders_of(process: subprocess.Popen) -> list[int]:
    """Loader processes of a run on one process, which are forked."""
    return [pid for pid, command in children(process) if "main_adco.py" in command]


def children(process: subprocess.Popen) -> list[tuple[int, str]]:
    """Number and command line of every process that this one has started and not outlived."""
    found = []
    try:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            found.append((int(pid), Path(f"/proc/{pid}/cmdline").read_text()))
    except OSError:  # one has just ended
        pass
    return found


def faults_of(folder: Path, code: int, codes: tuple[int, ...]) -> list[str]:
    """What is wrong with the end of a run: its code, its last line, or a traceback."""
    printed, said = (folder / OUT).read_text(), (folder / ERR).read_text()
    found = [f"exit code {code}"] * (code not in codes)
    begins = {0: "finished: ", EXIT_STOPPED: "stopped by "}.get(code, "")
    if code == EXIT_FAILED:
        printed, begins = said, "main_adco.py: error: process "
    last = printed.rstrip("\n").rpartition("\n")[2]
    if not last.startswith(begins):
        found.append(f"last line {last!r}")
    if "Traceback" in said or "Fatal Python" in said:
        found.append("traceback")
    return found


def is_left(process: subprocess.Popen) -> bool:
    """Whether any of the group of a run that was started here is still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return True
    return False
