"""Runs beside each other: compare.html."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from adco.report.diagnosis import diagnose
from adco.report.embedded import embed_run
from adco.report.figures import LOGGED, panel, svg
from adco.report.one import neighbours
from adco.report.page import Sprite, write_page
from adco.report.runs import SCORES, Run, probe_scores
from ops.errors import InputError

# Options that make no other run.
PLACES = (
    "seed",
    "save_path",
    "log_path",
    "resume",
    "workers",
    "print_freq",
    "report_epochs",
    "data",
)
MOST_SHOWN = 6  # runs of which neighbours are shown
GROUPED = ("options", "score", "runs", "mean", "smallest", "largest")


def varying(runs: list[Run]) -> list[str]:
    """The options in which the runs differ, those of places aside."""
    names = dict.fromkeys(name for run in runs for name in run.options if name not in PLACES)
    return [n for n in names if len({repr(run.options.get(n)) for run in runs}) > 1]


def scores_of_groups(runs: list[Run], probes: dict[Path, list]) -> list[list]:
    """A row of GROUPED for each score of those runs that differ in nothing but the seed."""
    names, found = varying(runs), defaultdict(list)
    for run in runs:
        words = " ".join(f"--{n} {run.options.get(n)}" for n in names) or "all alike"
        for kind, (name, title, unit) in SCORES.items():
            if points := run.curve(kind, name):
                found[words, title + unit].append(points[-1][1])
        for name, value in probes[run.folder]:
            found[words, name].append(value)
    spread = (np.mean, np.min, np.max)
    return [[*key, len(x), *(round(float(f(x)), 2) for f in spread)] for key, x in found.items()]


def compare(runs: list[Run], folder: Path) -> Path:
    """Write compare.html into the folder. Returns its path."""
    probes, names = {run.folder: probe_scores(folder, run) for run in runs}, varying(runs)
    rows, sprite, shown = [], Sprite(), []
    for run in runs:
        scored = [*run.scores().values()][1:][-1:] or [""]
        probed = "; ".join(f"{name} {value:.1f}" for name, value in probes[run.folder])
        said = ", ".join(f.name for f in diagnose(run))
        options = [str(run.options.get(n)) for n in names]
        seed, epochs = run.options["seed"], len(run.records.get("epoch", []))
        rows.append([run.folder.name, *options, seed, epochs, *scored, probed, said])
    header = ["run", *names, "seed", "epochs", "last score", "probes", "diagnosis"]
    panels = [
        panel(
            title, {run.folder.name[11:19]: points for run in runs if (points := run.curve(*key))}
        )
        for key, (title, _) in LOGGED.items()
        if any(run.curve(*key) for run in runs)
    ]
    for run in runs[:MOST_SHOWN]:
        try:
            part = neighbours(embed_run(run), sprite)
        except InputError as error:
            part = {"note": f"Not shown: {error}"}
        shown.append({**part, "title": run.folder.name})
    sections = [
        {"title": f"{len(runs)} runs", "note": str(folder)},
        {"title": "Scores", "note": "Runs that differ in nothing but the seed are one row.",
         "header": GROUPED, "rows": scores_of_groups(runs, probes), "sorts": True},
        {"title": "Runs", "note": "With what differs in their options.", "header": header,
         "rows": rows, "sorts": True},
        {"title": "Curves", "note": "By the time of their start.", "figures": [*map(svg, panels)]},
        {"title": "Neighbours", "beside": shown},
    ]  # fmt: skip
    write_page(folder / "compare.html", f"{len(runs)} runs", sections, sprite)
    return folder / "compare.html"
