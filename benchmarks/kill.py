"""Interrupt training runs at random moments, go on each time, and compare with runs in peace.
Then send runs a signal at any moment of their life, and look at how they end.

python3 -m benchmarks.kill                          # 100 interruptions over all modes, 24 signals
python3 -m benchmarks.kill --kills 12 --signals 0   # a short one

75: stopped and saved.  0: the run had ended before.  The signal's own: there was nothing to save.
Never anything else, never a traceback, and no process stays behind. A loader process is deaf: the
run goes on to its end.
"""

import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import torch

from adco.pack import PackConfig, pack
from adco.report import read_metrics
from benchmarks import print_head, print_row
from ops import checkpoint
from ops.arguments import AT_LEAST_0, command, option
from tests.support import background
from tests.support.background import PLACES, TARGETS, Ending, finish, interrupt, run_folder

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
DAMAGES = {
    "truncated": lambda content, at: content[:at],
    "zeroed": lambda content, at: bytes(len(content)),
    "one byte flipped": lambda content, at: (
        content[:at] + bytes([255 - content[at]]) + content[at + 1 :]
    ),
}  # of a checkpoint, at some byte
MANY = (
    "--multi_crop 1 --size_crops 20 12 --nmb_crops 1 2 --min_scale_crops .2 .1 "
    "--max_scale_crops 1 .5"
)
MODES = {"single": "", "symmetric": "--sym 1", "multi-crop": MANY, "both": f"--sym 1 {MANY}"}
UNEQUAL = ("time", "warning")  # records with the time of day, or of what went wrong
TIMES = ("images_per_second", "data_share", "seconds", "data_seconds")  # of one run only
SHORT = "--epochs 20 --knn_freq 0 --save_minutes 0.0005"


@dataclass(frozen=True)
class KillBenchmark:
    """Interrupt, resume, compare bit for bit; send a signal, look at the exit code."""

    kills: int = option(100, "interruptions in all", AT_LEAST_0)
    signals: int = option(24, "signals at any moment, each in a run of its own", AT_LEAST_0)
    seed: int = option(0, "seed of the moments")


def disturb(
    folder: Path, words: list[str], kills: range, rng: random.Random, pause: float = 0.3
) -> Counter:
    """Run with these interruptions, by number, each at most `pause` seconds after its first step
    or in the next save, then to the end; what happened, counted.
    """
    happened = Counter()
    for kill in kills:
        name, in_save = ("SIGKILL", "SIGTERM")[kill // 2 % 2], kill % 2 == 1
        who = signal.Signals[name], "any" if name == "SIGKILL" else "parent", rng
        end = interrupt(folder, words, *who, background.FIRST_STEP, rng.uniform(0, pause), in_save)
        assert not end.faults, end
        what = f"{name}{' in a save' * in_save}: {end.code}"
        happened[what if end.code else "ended before the signal"] += 1
        last = run_folder(folder) / checkpoint.LAST
        if end.code and kill % 6 == 5 and last.exists():  # the first save may be the one broken off
            kind, content = list(DAMAGES)[kill // 6 % 3], last.read_bytes()
            last.write_bytes(DAMAGES[kind](content, rng.randrange(len(content))))
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
    kinds = {kind: of for kind, of in read_metrics(run).items() if kind not in UNEQUAL}
    records = chain.from_iterable(kinds.values())
    return tensors, [{n: x for n, x in record.items() if n not in TIMES} for record in records]


def differences(one: Path, other: Path) -> list[str]:
    """What is not bit-equal between two finished runs."""
    (tensors, logged), (other_tensors, other_logged) = outcome(one), outcome(other)
    assert tensors.keys() == other_tensors.keys()
    found = [name for name, x in tensors.items() if not torch.equal(x, other_tensors[name])]
    if len(logged) != len(other_logged):
        found.append(f"{len(logged)} against {len(other_logged)} lines of metrics.jsonl")
    pairs = zip(logged, other_logged, strict=False)
    return found + [f"{a} against {b}" for a, b in pairs if a != b][:3]


def cases(above: Path) -> dict[str, list[str]]:
    """Each mode on each number of processes; precision, parts of a batch and data in turn."""
    folder, found = background.write_digits(above / "digits", 48), {}
    pack(PackConfig(str(folder), str(above / "shards")))
    for i, (mode, processes) in enumerate(product(MODES, (1, 2, 4))):
        amp, parts = ("none", "bf16")[i % 2], 1 + i // 2 % 2
        kind, data = ("folder", folder) if i // 4 % 2 else ("tar", above / "shards")
        words = f"--dataset {kind} --data {data} {MODES[mode]} "
        words += f"--amp {amp} --nproc {processes} --accum_steps {parts}"
        found[f"{mode}, {processes}, {amp}, {parts}, {kind}"] = words.split()
    return found


def print_kills(kills: int, rng: random.Random) -> bool:
    """A row for each case; whether all is equal to the run in peace."""
    what = "mode, processes, precision, parts, data"
    print_head(what, "what happened, and the exit codes", "tensors", "log lines", "not bit-equal")
    good = True
    with tempfile.TemporaryDirectory() as name:
        all_cases = cases(Path(name))
        for i, (case, words) in enumerate(all_cases.items()):
            mine = range(kills * i // len(all_cases), kills * (i + 1) // len(all_cases))
            if not mine:
                continue
            words += ["--epochs", f"{1 + len(mine) // 2}"]  # so many interruptions fit in
            peace, trouble = (Path(name, f"{which}{i}") for which in ("peace", "trouble"))
            peace.mkdir(), trouble.mkdir()
            finish(peace, words)
            happened = disturb(trouble, words, mine, rng)
            found, (tensors, logged) = differences(peace, trouble), outcome(trouble)
            counts = ", ".join(f"{count} x {what}" for what, count in happened.items())
            print_row(case, counts, len(tensors), len(logged), "; ".join(found) or "nothing")
            good &= not found
            shutil.rmtree(peace), shutil.rmtree(trouble)
    return good


def signalled(
    data: Path, name: str, target: str, processes: int, rng, place: str, pause: float
) -> Ending:
    """A short run, with a loader process for each of its processes, that gets one signal."""
    words = f"{SHORT} --data {data} --nproc {processes} --workers {processes}".split()
    with tempfile.TemporaryDirectory() as folder:
        return interrupt(Path(folder), words, signal.Signals[name], target, rng, place, pause)


def print_signals(signals: int, rng: random.Random) -> bool:
    """A row for each signal, all combinations in turn; whether all went as promised."""
    print_head("signal", "target", "processes", "where it came", "exit code", "not as promised")
    rows, good = list(product(SIGNALS, TARGETS, (1, 2))), True
    with tempfile.TemporaryDirectory() as name:
        data = background.write_digits(Path(name), 48)
        for i in range(signals):
            row = rows[i] if i < len(rows) else rng.choice(rows)
            end = signalled(data, *row, rng, rng.choice(list(PLACES)), rng.uniform(0, 3))
            where = end.place or "it had ended"
            print_row(*row, where, end.code, ", ".join(end.faults) or "nothing")
            if end.faults:
                print(f"{row}, {where}:\n{end.said[-3000:]}", file=sys.stderr, flush=True)
            good &= not end.faults
    return good


def kill(config: KillBenchmark) -> int:
    rng = random.Random(config.seed)
    good = print_kills(config.kills, rng) if config.kills else True
    good &= print_signals(config.signals, rng) if config.signals else True
    return int(not good)


main = command("benchmarks.kill", KillBenchmark, kill)


if __name__ == "__main__":
    sys.exit(main())
