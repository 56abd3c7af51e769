"""Runs beside each other: compare.html."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from adco.pretrain.monitor import SCORES
from adco.report.diagnosis import diagnose
from adco.report.embedded import embed_run
from adco.report.figures import LOGGED, panel, svg
from adco.report.one import neighbours
from adco.report.page import Sprite, write_page
from adco.report.runs import Run, probe_scores
from ops.errors import InputError

# Options that make no other run.
PLACES = ("save_path", "log_path", "resume", "workers", "print_freq", "report_epochs", "data")
MOST_SHOWN = 6  # runs of which neighbours are shown


def varying(runs: list[Run]) -> list[str]:
    """The options in which the runs differ, those of places and the seed aside."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    values = {n: {repr(run.options.get(n)) for run in runs} for n in names}
    return [n for n in names if len(values[n]) > 1 and n not in (*PLACES, "seed")]


def grouped(runs: list[Run], probes: dict[Path, dict[str, float]]) -> list[dict]:
    """A row for each score of those runs that differ in nothing but the seed."""
    names, found = varying(runs), defaultdict(list)
    for run in runs:
        words = " ".join(f"--{n} {run.options.get(n)}" for n in names) or "all alike"
        last = {t + u: run.curve(kind, name)[-1:] for kind, (name, t, u) in SCORES.items()}
        scores = {title: points[0][1] for title, points in last.items() if points}
        for title, value in (scores | probes[run.folder]).items():
            found[words, title].append(value)
    how = {"mean": np.mean, "smallest": np.min, "largest": np.max}
    return [
        {
            "options": words,
            "score": title,
            "runs": len(x),
            **{n: float(f(x)) for n, f in how.items()},
        }
        for (words, title), x in found.items()
    ]


def compare(runs: list[Run], folder: Path) -> Path:
    """Write compare.html into the folder. Returns its path."""
    probes, sprite = {run.folder: probe_scores(folder, run) for run in runs}, Sprite()
    rows, shown = [], []
    for number, run in enumerate(runs, 1):
        row = {"": number, "run": run.folder.name, "seed": run.options["seed"], **run.scores()}
        row |= {n: str(run.options.get(n)) for n in varying(runs)} | probes[run.folder]
        rows.append({**row, "diagnosis": ", ".join(f.name for f in diagnose(run))})
    for number, run in enumerate(runs[:MOST_SHOWN], 1):
        try:
            part = neighbours(embed_run(run), sprite)
        except InputError as error:
            part = {"note": f"Not shown: {error}"}
        shown.append({**part, "is": "", "title": f"{number}  {run.folder.name}"})
    curves = {
        title: {f"{i}": run.curve(*key) for i, run in enumerate(runs, 1) if run.curve(*key)}
        for key, (title, _) in LOGGED.items()
    }
    sections = [
        {"is": "runs", "note": str(folder)},
        {"is": "scores", "rows": grouped(runs, probes), "sorts": True},
        {"is": "options", "rows": rows, "sorts": True},
        {"is": "curves", "figures": [svg(panel(*of)) for of in curves.items() if of[1]]},
        {"is": "neighbours", "beside": shown},
    ]
    write_page(folder / "compare.html", f"{len(runs)} runs", sections, sprite)
    return folder / "compare.html"
