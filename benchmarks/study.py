"""Learned, queued and in-batch negatives in one trainer: kNN accuracy over seeds.

python3 -m benchmarks.study --data FOLDER     # the whole plan, which takes a CPU days
python3 -m benchmarks.study --data FOLDER --cells cifar10-32 --ways late batch --seeds 4 5

FOLDER holds cifar10/ and imagenette96/, each with train/CLASS and val/CLASS. Each run is a whole
pre-training of minutes. What has ended is in OUT/study.jsonl and is not run again, so the study
goes on where it was interrupted. Runs of one seed share initial weights, order and draws of the
crops. The tables go into OUT/study.md, between its marks; the curves are OUT/study.png.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from adco.report import newest_run, read_metrics
from benchmarks import ROOT
from ops.arguments import command, option
from ops.errors import InputError, RunFailed
from ops.files import write_whole

# What all runs share, and what each kind of negatives has.
SHARED = (
    "--dataset folder --recipe published --arch resnet10 --blur 0 --eval_crop 0 --moco_t .12 "
    "--moco_m .99 --knn_k 20 --sym 1 --epochs 12"
)
WATCHED = "--report_epochs 0 --knn_freq 3"
ANGLE = "--negatives learned --cluster 1024 --memory_lr auto --mem_t .03"
WAYS = {
    "late": f"{ANGLE} --refresh 8 --adversaries_from .25",
    "batch": "--negatives batch",
    "decoupled": "--negatives batch --decoupled 1",
    "simclr": "--negatives simclr",
    "queue": "--negatives queue --cluster 768",
    "unrefreshed": f"{ANGLE} --adversaries_from .25",
    "refreshed": f"{ANGLE} --refresh 8",
    "published": "--negatives learned --cluster 1024 --memory_lr 3 --mem_t .02",
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
BEGIN, END = "<!-- tables of benchmarks.study -->", "<!-- end of the tables -->"


class Cell(NamedTuple):
    """Runs that are compared: on which data, with which options, of which kinds how many."""

    data: str
    options: str
    plan: dict[str, int]

    @property
    def shared(self) -> str:
        return f"{SHARED} {self.options}"


NINE = dict.fromkeys(("late", "batch", "decoupled"), 9)
CELLS = {
    "cifar10-256": Cell(
        "cifar10", "--image_size 32 --batch_size 256 --lr .06", {**dict.fromkeys(ALL, 1), **NINE}
    ),
    "cifar10-32": Cell(
        "cifar10", "--image_size 32 --batch_size 32 --lr .015", {**NINE, "queue": 3, "control": 3}
    ),
    "imagenette-256": Cell(
        "imagenette96", "--image_size 64 --batch_size 256 --lr .06", {**NINE, "queue": 3}
    ),
}


@dataclass(frozen=True)
class StudyBenchmark:
    """Final kNN accuracy and its course for kinds of negatives, with the same seeds."""

    data: str = option("data", "folder that holds cifar10/ and imagenette96/")
    out: str = option("docs", "folder of the results, which are continued there")
    cells: tuple[str, ...] = option(tuple(CELLS), "data and batch size", choices=tuple(CELLS))
    ways: tuple[str, ...] = option((), "kinds of negatives (the plan's)", choices=tuple(ALL))
    seeds: tuple[int, ...] = option((), "one run of each kind with each (the plan's)")


def planned(config: StudyBenchmark) -> list[tuple[str, str, int]]:
    """(cell, way, seed) of all runs, those of one seed together."""
    runs = [
        (name, way, seed)
        for name in config.cells
        for way in config.ways or CELLS[name].plan
        for seed in config.seeds or range(CELLS[name].plan.get(way, 1))
    ]
    return sorted(runs, key=lambda run: run[2])


def train(data: Path, shared: str, way: str, seed: int) -> list[tuple[int, float]]:
    """(epoch, kNN accuracy in percent), that of the random weights first."""
    words = f"{shared} {ALL[way]} {WATCHED} --seed {seed}".split()
    with tempfile.TemporaryDirectory() as folder:
        program = ["-c", CONTROL] if way == "control" else [ROOT / "main_adco.py"]
        command = [sys.executable, *program, *words, "--data", data, "--save_path", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RunFailed(f"{way}, seed {seed}: {done.stderr.strip() or done.returncode}")
        scores = read_metrics(newest_run(Path(folder)))["knn"]
        return [(record["epoch"], round(record["accuracy"], 2)) for record in scores]


def tables(records: list[dict]) -> str:
    """For each cell the scores of each way, and how far `late` (`batch`) is ahead of it."""
    runs, lines = pd.DataFrame(records), []
    runs = runs.drop_duplicates(["cell", "way", "seed"], keep="last")
    runs["score"] = [curve[-1][1] for curve in runs["curve"]]
    for name, own in runs.groupby("cell"):
        lines += [f"**{name}**, all with `{CELLS[name].shared}`:", ""]
        lines += ["| way | options | runs | kNN | smallest to largest | ahead of it |"]
        lines += ["|---|---|---|---|---|---|"]
        scores = own.pivot(index="seed", columns="way", values="score")
        options = dict(zip(own["way"], own["options"], strict=True))
        for way in sorted(options, key=[*ALL, *options].index):
            # What has one thing changed is compared with what it was changed from.
            base = "batch" if way in MORE and way != "control" else "late"
            x = scores[way].dropna()
            pairs = (scores[base] - x).dropna() if base in scores and way != base else []
            apart = f"{base} {interval(pairs)}" if len(pairs) else ""
            row = f"| {way} | `{options[way]}` | {len(x)} | {x.mean():.1f} "
            lines.append(f"{row}| {x.min():.1f} to {x.max():.1f} | {apart} |")
        lines.append("")
    return "\n".join(lines)


def interval(pairs: pd.Series) -> str:
    """Mean and 95 % t interval."""
    if len(pairs) < 2:
        return "".join(f"{difference:+.1f} (1 pair)" for difference in pairs)
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)
    return f"{pairs.mean():+.1f} ± {half:.1f} ({len(pairs)} pairs)"


def draw(records: list[dict], path: Path) -> None:
    """Mean curves over the seeds, with the range of the runs behind: a panel for each cell."""
    cells = [name for name in CELLS if any(record["cell"] == name for record in records)]
    figure = Figure(figsize=(4 * len(cells), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        for number, way in enumerate(WAYS):
            found = [dict(r["curve"]) for r in records if (r["cell"], r["way"]) == (name, way)]
            if found:
                runs, colour = pd.DataFrame(found).dropna(axis=1), f"C{number}"  # epochs of all
                axis.plot(runs.columns, runs.mean(), color=colour, label=f"{way} ({len(runs)})")
                axis.fill_between(runs.columns, runs.min(), runs.max(), alpha=0.15, color=colour)
                axis.legend()
        axis.set(title=name, xlabel="epoch", ylabel="kNN accuracy, %")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def read(file: Path) -> list[dict]:
    """The runs that have ended, of those that are made alike."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    records = []
    for line in file.read_text().splitlines():
        with suppress(ValueError):  # half a line, of a machine that went down
            records.append(json.loads(line))
    shared = {name: cell.shared for name, cell in CELLS.items()}
    return [
        r
        for r in records
        if r["shared"] == shared.get(r["cell"]) and r["options"] == ALL.get(r["way"], r["options"])
    ]


def write(records: list[dict], out: Path) -> None:
    """Tables, between the marks of a page that is there, and curves."""
    page = out / "study.md"
    before, _, rest = (page.read_text() if page.exists() else "").partition(BEGIN)
    text = f"{before}{BEGIN}\n\n{tables(records)}\n{END}{rest.partition(END)[2]}"
    write_whole(page, text.encode())
    draw(records, out / "study.png")


def study(config: StudyBenchmark) -> None:
    folders = {name: Path(config.data, CELLS[name].data).absolute() for name in config.cells}
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise InputError(f"no folder {missing[0]!r}; expected one with train/ and val/")
    file = Path(config.out, "study.jsonl")
    done = {(r["cell"], r["way"], r["seed"]) for r in read(file)}
    for name, way, seed in planned(config):
        if (name, way, seed) in done:
            continue
        curve = train(folders[name], CELLS[name].shared, way, seed)
        record = dict(cell=name, way=way, seed=seed, options=ALL[way], curve=curve)
        record["shared"] = CELLS[name].shared
        with file.open("a") as lines:
            lines.write("\n" + json.dumps(record) + "\n")  # after half a line too
        write(read(file), Path(config.out))
        print(f"{name}, {way}, seed {seed}: {curve[-1][1]:.2f}", flush=True)
    records = read(file)
    write(records, Path(config.out))
    print(tables(records))


main = command("benchmarks.study", StudyBenchmark, study)


if __name__ == "__main__":
    sys.exit(main())
