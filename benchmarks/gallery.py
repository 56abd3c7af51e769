"""Healthy runs, runs that are made to fail, and what their pages say of them.

python3 -m benchmarks.gallery     # OUT/gallery.md and OUT/gallery.png, as in docs/report.md

Each run takes about a minute of a CPU. What has ended is in OUT and is not run again.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adco.report.diagnosis import diagnose
from adco.report.drawing import LOGGED
from adco.report.runs import Run, runs_below
from benchmarks import ROOT
from ops.arguments import command, option
from ops.errors import EXIT_FAILED, RunFailed
from ops.files import write_whole
from tests.support.background import write_digits

DIGITS = (
    "--dataset digits --recipe published --min_scale .5 --batch_size 128 --lr .02 --cluster 1024 "
    "--init_steps 93 --memory_lr .3 --mem_t .2 --moco_m .99 --epochs 3 --knn_freq 1"
)
LARGE = (
    "--dataset folder --recipe published --arch resnet10 --image_size 20 --batch_size 16 "
    "--workers 0 --cluster 64 --memory_lr .02 --mem_t .2 --epochs 4 --val_split 0"
)
# What each is given beside DIGITS, or LARGE where its pictures are large.
RUNS = {
    "healthy": "--epochs 6",
    "healthy, symmetric": "--sym 1",
    "healthy, the recipe": "--recipe auto --batch_size 64 --lr .06 --init_steps 0",
    "diverging": "--lr 1e20",
    "rate too high": "--lr 1",
    "rate too low": "--lr 5e-5 --lr_final 5e-5",
    "collapse": "--lr .1 --memory_lr 3 --init_steps 0",
    "the adversaries win": "--lr .005 --memory_lr 300 --mem_t .3 --init_steps 8",
    "starved adversaries": "--mem_t .02",
    "adversaries stand still": "--memory_lr 1e-5",
    "adversaries are twins": "--memory_lr 30",
    "too few pictures for K": "--cluster 16384 --init_steps 128 --memory_lr 5",
    "waiting for pictures": LARGE,
    "plateau": "--epochs 12",
}
SHOWN = (("train", "loss"), ("train", "mass"), ("train", "spread"), ("knn", "accuracy"))


@dataclass(frozen=True)
class GalleryBenchmark:
    """Train each run once, and draw all of them."""

    out: str = option("gallery", "folder of the runs, which are continued there")
    runs: tuple[str, ...] = option(tuple(RUNS), "which runs", choices=tuple(RUNS))


def trained(out: Path, name: str) -> Run:
    """The run of this name, which may have ended with a failure."""
    folder, large = out / name.replace(" ", "-").replace(",", ""), RUNS[name] == LARGE
    ended, words = folder / "ended", LARGE if large else f"{DIGITS} {RUNS[name]}"
    if not ended.exists() or ended.read_text() != words:
        if large and not (out / "large").exists():
            # They take longer to read than to learn from.
            write_digits(out / "large", 32, side=1600)
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, ROOT / "main_adco.py", "--report_epochs", "0", *words.split()]
        data = ["--data", out / "large"] if large else []
        done = subprocess.run([*command, *data, "--save_path", folder])
        if done.returncode not in (0, EXIT_FAILED):
            raise RunFailed(f"{name}: exit code {done.returncode}")
        ended.write_text(words)
    return runs_below(folder)[-1]


def draw(runs: dict[str, Run]) -> Figure:
    """A row of curves for each run, with the first run's behind."""
    figure = Figure(figsize=(11, 1.5 * len(runs)), layout="constrained")
    first = next(iter(runs.values()))
    for row, (name, run) in zip(figure.subplots(len(runs), len(SHOWN)), runs.items(), strict=True):
        for axis, of in zip(row, SHOWN, strict=True):
            for some, style in ((first, dict(color="0.85", linewidth=3)), (run, dict(marker="."))):
                axis.plot(*np.array(some.curve(*of) or [(0, np.nan)]).T, markersize=3, **style)
            axis.set_title(LOGGED[of][0] if run is first else "", fontsize=9)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(name.replace(" ", "\n", 1), fontsize=8)
    return figure


def show(config: GalleryBenchmark) -> None:
    out = Path(config.out)
    runs = {name: trained(out, name) for name in config.runs}
    lines = ["| run | made by | what its page says | kNN |", "|---|---|---|---|"]
    for name, run in runs.items():
        said = "; ".join(f"**{found.name}**" for found in diagnose(run)) or "nothing"
        score = run.scores().get("kNN accuracy, pre-trained", "")
        lines.append(f"| {name} | `{RUNS[name]}` | {said} | {score} |")
    print("\n".join(lines))
    write_whole(out / "gallery.md", "\n".join([*lines, ""]).encode())
    draw(runs).savefig(out / "gallery.png", dpi=90)


main = command("benchmarks.gallery", GalleryBenchmark, show)


if __name__ == "__main__":
    sys.exit(main())
