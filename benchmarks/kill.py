"""Interrupt a training run at random moments, go on each time, and compare with a run in peace.
Then send runs a signal at any moment, and look at how they end.

python3 -m benchmarks.kill                          # 36 interruptions, a sixth with a damaged file
                                                    # after it, and 24 signals
python3 -m benchmarks.kill --kills 3 --signals 0    # a short one
python3 -m benchmarks.kill --kills 0 --signals 24   # the signals alone
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

from benchmarks.background import ERR, finish, run_folder, start, started_by
from benchmarks.measure import print_head, print_row
from benchmarks.signals import print_signals
from ops import checkpoint
from ops.arguments import AT_LEAST_0, AT_LEAST_1, option, parse
from ops.errors import EXIT_STOPPED, reported

MOMENTS = ("SIGKILL", "SIGKILL in a save", "SIGTERM", "SIGTERM in a save")
DAMAGES = ("truncated", "zeroed", "one byte flipped")
TIMES = ("images_per_second", "data_share", "seconds", "data_seconds")  # of one run only


@dataclass(frozen=True)
class KillBenchmark:
    """Interrupt, resume, compare bit for bit; send a signal, look at the exit code."""

    processes: tuple[int, ...] = option((1, 2), "of the run, one run for each number")
    kills: int = option(18, "interruptions for each number of processes", AT_LEAST_0)
    signals: int = option(24, "signals at any moment, each in a run of its own", AT_LEAST_0)
    epochs: int = option(8, "epochs of the run, of 40 steps each", AT_LEAST_1)
    amp: str = option("none", "precision of the encoders", choices=("none", "bf16"))
    seed: int = option(0, "seed of the moments")


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
        process.wait(timeout=300)
        if process.returncode == 0:
            happened["ended before the signal"] += 1
            continue
        happened[moment] += 1
        if moment.startswith("SIGTERM"):
            error = (folder / ERR).read_text()
            assert process.returncode == EXIT_STOPPED, (process.returncode, error)
        if kill % 6 == 5:
            kind = DAMAGES[kill // 6 % len(DAMAGES)]
            damage(run_folder(folder) / checkpoint.LAST, kind, rng)
            happened[f"last checkpoint {kind} after it"] += 1
    finish(folder, words)
    return happened


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


def print_kills(config: KillBenchmark, rng: random.Random) -> bool:
    """A row for each number of processes; whether all is equal to the run in peace."""
    print_head("processes", "what happened", "tensors", "log lines", "not bit-equal")
    good = True
    for processes in config.processes:
        words = ["--nproc", str(processes), "--epochs", str(config.epochs), "--amp", config.amp]
        with tempfile.TemporaryDirectory() as above:
            peace, trouble = Path(above) / "peace", Path(above) / "trouble"
            peace.mkdir(), trouble.mkdir()
            finish(peace, words)
            happened = disturb(trouble, words, config.kills, rng)
            found = differences(peace, trouble)
            tensors, logged = outcome(trouble)
        counts = ", ".join(f"{count} x {what}" for what, count in happened.items())
        print_row(processes, counts, len(tensors), len(logged), "; ".join(found) or "nothing")
        good &= not found
    return good


def main(argv=None) -> int:
    with reported("benchmarks.kill"):
        config = parse(KillBenchmark, argv)
        rng = random.Random(config.seed)
        good = True
        if config.kills:
            good &= print_kills(config, rng)
        if config.signals:
            print()
            good &= print_signals(config.processes, config.signals, rng)
        return int(not good)


if __name__ == "__main__":
    sys.exit(main())
