"""Learned, queued and in-batch negatives in one trainer: kNN accuracy over seeds.

python3 -m benchmarks.study --data FOLDER --image_size 32     # FOLDER: train/CLASS, val/CLASS
python3 -m benchmarks.study --data FOLDER --ways batch late --seeds 0 1 2 3

Each run is a whole pre-training of minutes to hours. What has ended is in OUT/runs.jsonl and is not
run again, so the study goes on where it was interrupted. Runs of one seed share initial weights,
order and draws of the crops. OUT/study.md is the table, OUT/study.png the curves; docs/study.md
discusses them.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from adco.report import newest_run, read_metrics
from benchmarks import ROOT
from ops.arguments import AT_LEAST_1, POSITIVE, option, parse
from ops.errors import InputError, RunFailed, reported
from ops.files import write_whole

# What all runs share, and what each kind of negatives has.
SHARED = (
    "--dataset folder --recipe published --arch resnet10 --blur 0 --eval_crop 0 --moco_t .12 "
    "--moco_m .99 --knn_k 20 --sym 1"
)
WATCHED = "--report_epochs 0 --knn_freq 3"
ANGLE = "--negatives learned --cluster 1024 --memory_lr auto"
WAYS = {
    "simclr": "--negatives simclr",
    "batch": "--negatives batch",
    "decoupled": "--negatives batch --decoupled 1",
    "queue": "--negatives queue --cluster 768",
    "published": "--negatives learned --cluster 1024 --memory_lr 3 --mem_t .02",
    "angle": f"{ANGLE} --mem_t .03",
    "refreshed": f"{ANGLE} --mem_t .03 --refresh 8",
    "unrefreshed": f"{ANGLE} --mem_t .03 --adversaries_from .25",
    "late": f"{ANGLE} --mem_t .03 --refresh 8 --adversaries_from .25",
}
# For questions of their own: adversaries without a gradient (below); then what all kinds share,
# one thing changed at a time.
MORE = {
    "control": WAYS["late"],
    "one_way": "--negatives batch --sym 0",
    "slow_keys": "--negatives batch --moco_m .999",
    "strong_decay": "--negatives batch --weight_decay 5e-4",
    "small_crops": "--negatives batch --min_scale .08",
    "split_batchnorm": "--negatives batch --accum_steps 4",
}
ALL = {**WAYS, **MORE}
# The adversaries' sum counts in the loss, and has no gradient: are they more than a temperature?
CONTROL = """import sys
import adco.fused
sums = adco.fused.column_sums
adco.fused.column_sums = lambda queries, *others: sums(queries.detach(), *others)
from main_adco import main
sys.exit(main())
"""


@dataclass(frozen=True)
class StudyBenchmark:
    """Final kNN accuracy and its course for kinds of negatives, with the same seeds."""

    data: str = option("data", "folder of pictures with classes, in train/ and val/")
    out: str = option("study", "folder of the results, which are continued there")
    ways: tuple[str, ...] = option(tuple(WAYS), "kinds of negatives", choices=tuple(ALL))
    seeds: tuple[int, ...] = option((0, 1, 2), "one run of each kind with each")
    image_size: int = option(32, "side of the views, pixels", AT_LEAST_1)
    batch_size: int = option(256, "M", AT_LEAST_1)
    epochs: int = option(12, "epochs of each run", AT_LEAST_1)
    lr: float = option(0.06, "learning rate of the encoder", POSITIVE)


def train(config: StudyBenchmark, way: str, seed: int) -> list[tuple[int, float]]:
    """(epoch, kNN accuracy in percent), that of the random weights first."""
    names = ("data", "image_size", "batch_size", "epochs", "lr")
    words = [f"--{name}={getattr(config, name)}" for name in names]
    words += [f"--seed={seed}", *f"{WATCHED} {SHARED} {ALL[way]}".split()]
    with tempfile.TemporaryDirectory() as folder:
        program = ["-c", CONTROL] if way == "control" else [ROOT / "main_adco.py"]
        command = [sys.executable, *program, *words, "--save_path", folder]
        here = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=here)
        if done.returncode:
            raise RunFailed(f"{way}, seed {seed}: {done.stderr.strip() or done.returncode}")
        scores = read_metrics(newest_run(Path(folder)))["knn"]
        return [(record["epoch"], record["accuracy"]) for record in scores]


def table(curves: dict[tuple[str, int], list], config: StudyBenchmark) -> str:
    """Rows of mean and spread, and of the paired difference to the first way."""
    lines = ["| negatives | runs | kNN, mean | smallest to largest | minus the first, 95 % |"]
    lines.append("|---|---|---|---|---|")
    first, final = config.ways[0], {key: curve[-1][1] for key, curve in curves.items()}
    for way in config.ways:
        found = {seed: final[way, seed] for seed in config.seeds if (way, seed) in final}
        apart = [x - final[first, s] for s, x in found.items() if (first, s) in final]
        interval, values = "", list(found.values())
        if way != first and len(apart) > 1:
            half = stats.t.ppf(0.975, len(apart) - 1) * stats.sem(apart)
            interval = f"{np.mean(apart):+.1f} ± {half:.1f}"
        if values:
            spread = f"{np.mean(values):.1f} | {min(values):.1f} to {max(values):.1f}"
            lines.append(f"| {way} | {len(values)} | {spread} | {interval} |")
    return "\n".join(lines) + "\n"


def draw(curves: dict[tuple[str, int], list], config: StudyBenchmark, path: Path) -> None:
    """Mean curves over the seeds, with the range of the runs behind."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for way in config.ways:
        if found := [dict(curve) for (name, _), curve in curves.items() if name == way]:
            # At the epochs that all have a score of.
            epochs = sorted(set(found[0]).intersection(*found))
            runs = np.array([[curve[epoch] for epoch in epochs] for curve in found])
            (line,) = axis.plot(epochs, runs.mean(axis=0), label=way)
            bounds = runs.min(axis=0), runs.max(axis=0)
            axis.fill_between(epochs, *bounds, alpha=0.15, color=line.get_color())
    axis.set(xlabel="epoch", ylabel="kNN accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


def main(argv=None) -> int:
    with reported("benchmarks.study"):
        config = parse(StudyBenchmark, argv)
        if not Path(config.data).is_dir():
            raise InputError(f"no folder {config.data!r}; expected one with train/ and val/")
        file, curves = Path(config.out, "runs.jsonl"), {}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        # Only runs that were made alike are continued.
        sizes = [config.image_size, config.batch_size, config.epochs, config.lr]
        sizes.append(Path(config.data).name)
        alike = {way: [*sizes, SHARED, ALL[way]] for way in config.ways}
        for record in map(json.loads, file.read_text().splitlines()):
            if record["alike"] == alike.get(record["way"]):
                curves[record["way"], record["seed"]] = record["curve"]
        for seed, way in product(config.seeds, config.ways):
            if (way, seed) not in curves:
                curve = curves[way, seed] = train(config, way, seed)
                record = dict(alike=alike[way], way=way, seed=seed, curve=curve)
                with file.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
                print(f"seed {seed}, {way}: {curve[-1][1]:.2f}", flush=True)
            write_whole(file.with_name("study.md"), table(curves, config).encode())
        draw(curves, config, file.with_name("study.png"))
        print(table(curves, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
