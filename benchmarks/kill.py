"""Interrupt training runs at random moments, go on each time, and compare with runs in peace.
Then send runs a signal at any moment, and look at how they end.

python3 -m benchmarks.kill                          # 100 interruptions over all modes, 24 signals
python3 -m benchmarks.kill --kills 12 --signals 0   # a short one
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from adco.pack import PackConfig, pack
from benchmarks.background import (
    ERR,
    faults_of,
    finish,
    run_folder,
    start,
    started_by,
    write_digits,
)
from benchmarks.measure import print_head, print_row
from benchmarks.signals import print_signals
from ops import checkpoint
from ops.arguments import AT_LEAST_0, option, parse
from ops.errors import EXIT_FAILED, EXIT_STOPPED, reported

MOMENTS = ("SIGKILL", "SIGKILL in a save", "SIGTERM", "SIGTERM in a save")
DAMAGES = ("truncated", "zeroed", "one byte flipped")
MANY = "--multi_crop 1 --size_crops 20 12 --nmb_crops 1 2"
MODES = {"single": "", "symmetric": "--sym 1", "multi-crop": MANY, "both": f"--sym 1 {MANY}"}
NOT_THE_SAME = ("time", "warning")  # records with the time of day, or of what went wrong
TIMES = ("images_per_second", "data_share", "seconds", "data_seconds")  # of one run only


@dataclass(frozen=True)
class KillBenchmark:
    """Interrupt, resume, compare bit for bit; send a signal, look at the exit code."""

    kills: int = option(100, "interruptions in all", AT_LEAST_0)
    signals: int = option(24, "signals at any moment, each in a run of its own", AT_LEAST_0)
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


def send(process: subprocess.Popen, number: signal.Signals, rng) -> tuple[int, ...]:
    """The signal to the launched process, or (SIGKILL only) to any of the run's. Returns the exit
    codes that may follow; that of a run that had just ended is 0.
    """
    if number != signal.SIGKILL:
        process.send_signal(number)
        return 0, EXIT_STOPPED
    chosen = rng.choice([process.pid, *started_by(process)])
    with suppress(ProcessLookupError):
        os.kill(chosen, number)
    return 0, -number if chosen == process.pid else EXIT_FAILED


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
    folder: Path, words: list[str], kills: range, rng: random.Random, pause: float = 0.7
) -> Counter:
    """Run with these interruptions, by number, then to the end; what happened, counted."""
    happened = Counter()
    for kill in kills:
        moment, codes = MOMENTS[kill % len(MOMENTS)], (0,)
        process = start(folder, words)
        if wait_for_moment(process, folder, moment, rng, pause):
            codes = send(process, signal.Signals[moment.split()[0]], rng)
        code = process.wait(timeout=300)
        faults = faults_of(folder, code, codes)
        assert not faults, (faults, code, codes, (folder / ERR).read_text())
        happened[f"{moment}: {code}" if code else "ended before the signal"] += 1
        if code and kill % 6 == 5:
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
    logged = [
        {k: v for k, v in r.items() if k not in TIMES}
        for r in records
        if r["kind"] not in NOT_THE_SAME
    ]
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


def cases(above: Path) -> list[tuple[str, list[str]]]:
    """Each mode on each number of processes; precision, parts of a batch and data in turn."""
    folder = write_digits(above / "digits", 96)
    pack(PackConfig(str(folder), str(above / "shards")))
    found = []
    for i, (mode, processes) in enumerate(product(MODES, (1, 2, 4))):
        amp, parts = ("none", "bf16")[i % 2], 1 + i // 2 % 2
        kind, data = ("folder", folder) if i // 4 % 2 else ("tar", above / "shards")
        words = f"--dataset {kind} --data {data} --recipe published -b 48 --epochs 6 {MODES[mode]} "
        words += f"--init_steps 6 --amp {amp} --nproc {processes} --accum_steps {parts}"
        found.append((f"{mode}, {processes}, {amp}, {parts}, {kind}", words.split()))
    return found


def print_kills(kills: int, rng: random.Random) -> bool:
    """A row for each case; whether all is equal to the run in peace."""
    what = "mode, processes, precision, parts, data"
    print_head(what, "what happened, and the exit codes", "tensors", "log lines", "not bit-equal")
    good = True
    with tempfile.TemporaryDirectory() as name:
        all_cases = cases(Path(name))
        for i, (case, words) in enumerate(all_cases):
            mine = range(kills * i // len(all_cases), kills * (i + 1) // len(all_cases))
            if not mine:
                continue
            peace, trouble = Path(name, f"peace{i}"), Path(name, f"trouble{i}")
            peace.mkdir(), trouble.mkdir()
            finish(peace, words)
            happened = disturb(trouble, words, mine, rng)
            found, (tensors, logged) = differences(peace, trouble), outcome(trouble)
            counts = ", ".join(f"{count} x {what}" for what, count in happened.items())
            print_row(case, counts, len(tensors), len(logged), "; ".join(found) or "nothing")
            good &= not found
            shutil.rmtree(peace), shutil.rmtree(trouble)
    return good


def main(argv=None) -> int:
    with reported("benchmarks.kill"):
        config = parse(KillBenchmark, argv)
        rng = random.Random(config.seed)
        good = print_kills(config.kills, rng) if config.kills else True
        good &= print_signals(config.signals, rng) if config.signals else True
        return int(not good)


if __name__ == "__main__":
    sys.exit(main())
