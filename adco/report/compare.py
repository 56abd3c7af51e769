"""Runs beside each other: compare.html."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from adco.pretrain.monitor import SCORES
from adco.report.diagnosis import diagnose
from adco.report.embedded import embed_run
from adco.report.one import neighbours
from adco.report.page import LOGGED, Sprite, panel, svg, write_page
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
    rows = []
    for (words, title), x in found.items():
        rows.append({"options": words, "score": title, "runs": len(x)})
        rows[-1] |= {"mean": np.mean(x), "smallest": min(x), "largest": max(x)}
    return rows


def compare(runs: list[Run], folder: Path) -> Path:
    """Write compare.html into the folder. Returns its path."""
    probes, sprite = {run.folder: probe_scores(folder, run) for run in runs}, Sprite()
    rows, shown, curves = [], [], {key: {} for key in LOGGED}
    for number, run in enumerate(runs, 1):
        row = {"": number, "run": run.folder.name, "seed": run.options["seed"], **run.scores()}
        row |= {n: str(run.options.get(n)) for n in varying(runs)} | probes[run.folder]
        rows.append({**row, "diagnosis": ", ".join(f.name for f in diagnose(run))})
        for key, found in curves.items():
            found |= {f"{number}": points} if (points := run.curve(*key)) else {}
        if number > MOST_SHOWN:
            continue
        try:
            part = neighbours(embed_run(run), sprite)
        except InputError as error:
            part = {"note": f"Not shown: {error}"}
        shown.append({**part, "is": "", "title": f"{number}  {run.folder.name}"})
    figures = [svg(panel(LOGGED[key][0], found)) for key, found in curves.items() if found]
    sections = [
        {"is": "runs", "note": str(folder)},
        {"is": "scores", "rows": grouped(runs, probes), "sorts": True},
        {"is": "options", "rows": rows, "sorts": True},
        {"is": "curves", "figures": figures},
        {"is": "neighbours", "beside": shown},
    ]
    write_page(folder / "compare.html", f"{len(runs)} runs", sections, sprite)
    return folder / "compare.html"
