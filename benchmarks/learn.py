"""What is learned with one way of computing and another: kNN accuracy of the demo over seeds.

python3 -m benchmarks.learn                      # nine runs, minutes each on two cores
python3 -m benchmarks.learn --dataset folder --data FOLDER --seeds 0 1
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from adco.report import newest_run, read_metrics
from benchmarks.measure import print_head, print_row
from ops.arguments import option, parse
from ops.errors import InputError, reported
from ops.options import DATASETS

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "float32, fast views": ["--amp", "none"],
    "bf16, fast views": ["--amp", "bf16"],
    "float32, Pillow's views": ["--amp", "none", "--augment", "pil"],
}


@dataclass(frozen=True)
class LearnBenchmark:
    """Final kNN accuracy for each precision and each renderer, with the same seeds."""

    dataset: str = option("digits", "data set with labels", choices=DATASETS)
    data: str = option("data", "its folder, where it has one")
    seeds: tuple[int, ...] = option((0, 1, 2), "one run each")


def train(config: LearnBenchmark, words: list[str], seed: int) -> float:
    """kNN accuracy after the last epoch, percent."""
    command = [sys.executable, str(ROOT / "main_adco.py"), "--dataset", config.dataset]
    command += ["--data", config.data, "--seed", str(seed), *words]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--save_path", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise InputError(done.stderr.strip() or f"{command} ended with {done.returncode}")
        return read_metrics(newest_run(Path(folder)))["knn"][-1]["accuracy"]


def main(argv=None) -> int:
    with reported("benchmarks.learn"):
        config = parse(LearnBenchmark, argv)
        scores = {name: [] for name in WAYS}
        for seed in config.seeds:
            for name, words in WAYS.items():
                scores[name].append(train(config, words, seed))
                print(f"seed {seed}, {name}: {scores[name][-1]:.2f}", file=sys.stderr, flush=True)
    print_head("way", *(f"seed {seed}" for seed in config.seeds), "mean", "smallest to largest")
    for name, found in scores.items():
        cells = (f"{score:.2f}" for score in found)
        print_row(name, *cells, f"{mean(found):.2f}", f"{min(found):.2f} to {max(found):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
