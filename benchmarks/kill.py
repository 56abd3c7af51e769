"""Interrupt a training run at random moments, go on each time, and compare with a run in peace.

python3 -m benchmarks.kill              # 36 interruptions, a sixth with a damaged file after it
python3 -m benchmarks.kill --kills 3    # a short one
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import print_head, print_row
from ops import checkpoint
from ops.arguments import at_least, option, parse
from ops.errors import EXIT_STOPPED, reported

ROOT = Path(__file__).resolve().parent.parent
RUN = [
    *("--dataset", "digits", "--arch", "resnet10", "--image_size", "20", "--cluster", "128"),
    *("--batch_size", "100", "--init_steps", "20", "--print_freq", "1", "--workers", "1"),
    *("--knn_freq", "2", "--save_steps", "3", "--save_freq", "1", "--resume", "auto"),
]
MOMENTS = ("SIGKILL", "SIGKILL in a save", "SIGTERM", "SIGTERM in a save")
DAMAGES = ("truncated", "zeroed", "one byte flipped")
TIMES = ("images_per_second", "data_share", "seconds", "data_seconds")  # of one run only


@dataclass(frozen=True)
class KillBenchmark:
    """Interrupt, resume, compare bit for bit."""

    processes: tuple = option((1, 2), "of the run, one run for each number", type=int, nargs="+")
    kills: int = option(18, "interruptions for each number of processes")
    epochs: int = option(8, "epochs of the run, of 40 steps each")
    amp: str = option("none", "precision of the encoders", choices=("none", "bf16"))
    seed: int = option(0, "seed of the moments")

    def __post_init__(self):
        at_least(self, 1, "kills", "epochs")


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main_adco.py"), *RUN, *words, "--save_path", str(folder)],
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_folder(folder: Path) -> Path | None:
    """The newest: a run that was killed before its first save is started anew."""
    found = [path.parent for path in folder.rglob("metrics.jsonl")]
    return max(found, key=lambda run: run.stat().st_ctime, default=None)


def wait_for_moment(process, folder: Path, moment: str, rng, pause: float) -> bool:
    """Wait until training goes on and the moment has come, at most `pause` seconds later or in the
    next save. False where the run ended before.
    """
    before = log_size(folder)
    while process.poll() is None and log_size(folder) == before:  # it starts
        time.sleep(0.01)
    run = run_folder(folder)
    moment_from = time.monotonic() + rng.uniform(0, pause)
    while process.poll() is None:
        ready = time.monotonic() > moment_from
        if ready and (not moment.endswith("save") or any(run.glob("*.partial"))):
            return True
        time.sleep(0.0005 if ready else 0.01)
    return False


def log_size(folder: Path) -> int:
    """Bytes logged by all runs. A run that goes on may first take some back."""
    return sum(path.stat().st_size for path in folder.rglob("metrics.jsonl"))


def send(process: subprocess.Popen, number: signal.Signals, rng) -> None:
    """The signal to the launched process, or (SIGKILL only) to one of the run's that it started."""
    chosen = rng.choice([process.pid, *started_by(process)])
    try:
        os.kill(chosen if number == signal.SIGKILL else process.pid, number)
    except ProcessLookupError:  # it has just ended
        process.send_signal(number)


def started_by(process: subprocess.Popen) -> list[int]:
    """Processes of the run, loader processes aside."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid, command in commands.items() if "spawn_main" in command]


def damage(path: Path, kind: str, rng) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: rng.randrange(len(content))]
    elif kind == "zeroed":
        content = bytes(len(content))
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def disturb(
    folder: Path, words: list[str], kills: int, rng: random.Random, pause: float = 0.7
) -> Counter:
    """Run with interruptions until they are used up, then to the end; what happened, counted."""
    happened = Counter()
    for kill in range(kills):
        moment = MOMENTS[kill % len(MOMENTS)]
        process = start(folder, words)
        if wait_for_moment(process, folder, moment, rng, pause):
            send(process, signal.Signals[moment.split()[0]], rng)
        error = process.communicate(timeout=300)[1]
        if process.returncode == 0:
            happened["ended before the signal"] += 1
            continue
        happened[moment] += 1
        if moment.startswith("SIGTERM"):
            assert process.returncode == EXIT_STOPPED, (process.returncode, error)
        if kill % 6 == 5:
            kind = DAMAGES[kill // 6 % len(DAMAGES)]
            damage(run_folder(folder) / checkpoint.LAST, kind, rng)
            happened[f"last checkpoint {kind} after it"] += 1
    finish(folder, words)
    return happened


def finish(folder: Path, words: list[str]) -> None:
    process = start(folder, words)
    error = process.communicate(timeout=900)[1]
    assert process.returncode == 0, error


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    """All tensors of the last checkpoint by name, and all logged values that are no times."""
    run = run_folder(folder)
    state = torch.load(run / checkpoint.LAST, weights_only=True)
    tensors = {**state["state_dict"], **state["Memory_Bank"]}
    for number, slot in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in slot.items()}
    records = map(json.loads, run.joinpath("metrics.jsonl").read_text().splitlines())
    logged = [{k: v for k, v in record.items() if k not in TIMES} for record in records]
    return tensors, logged


def differences(one: Path, other: Path) -> list[str]:
    """What is not bit-equal between two finished runs."""
    (tensors, logged), (other_tensors, other_logged) = outcome(one), outcome(other)
    assert tensors.keys() == other_tensors.keys()
    found = [name for name, x in tensors.items() if not torch.equal(x, other_tensors[name])]
    if len(logged) != len(other_logged):
        found.append(f"{len(logged)} against {len(other_logged)} lines of metrics.jsonl")
    pairs = zip(logged, other_logged, strict=False)
    return found + [f"{a} against {b}" for a, b in pairs if a != b][:3]


def main(argv=None) -> int:
    with reported("benchmarks.kill"):
        config = parse(KillBenchmark, argv)
        rng = random.Random(config.seed)
        print_head("processes", "what happened", "tensors", "log lines", "not bit-equal")
        failed = False
        for processes in config.processes:
            words = ["--nproc", str(processes), "--epochs", str(config.epochs)]
            words += ["--amp", config.amp]
            with tempfile.TemporaryDirectory() as above:
                peace, trouble = Path(above) / "peace", Path(above) / "trouble"
                peace.mkdir(), trouble.mkdir()
                finish(peace, words)
                happened = disturb(trouble, words, config.kills, rng)
                found = differences(peace, trouble)
                tensors, logged = outcome(trouble)
            counts = ", ".join(f"{count} x {what}" for what, count in happened.items())
            print_row(processes, counts, len(tensors), len(logged), "; ".join(found) or "nothing")
            failed |= bool(found)
        return int(failed)


if __name__ == "__main__":
    sys.exit(main())
