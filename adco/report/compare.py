"""Runs beside each other: compare.html."""

import json
from collections import defaultdict
from html import escape
from pathlib import Path

import numpy as np

from adco.pretrain.monitor import SCORES
from adco.report.diagnosis import diagnose
from adco.report.embedded import embed_run
from adco.report.figures import LOGGED, panel, svg
from adco.report.one import neighbours
from adco.report.page import Sprite, figures, table, write_page
from adco.report.runs import Run, probe_scores
from ops.errors import InputError

# Options that make no other run.
PLACES = (
    "seed",
    "save_path",
    "log_path",
    "resume",
    "workers",
    "gpu",
    "print_freq",
    "report_epochs",
)
MOST_NEIGHBOURS = 6  # runs of which neighbours are shown


def varying(runs: list[Run]) -> list[str]:
    """The options in which the runs differ, those that decide no number aside."""
    names = dict.fromkeys(name for run in runs for name in run.options if name not in PLACES)
    return [n for n in names if len({json.dumps(run.options.get(n)) for run in runs}) > 1]


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the seed, by what they differ from the others in."""
    names, groups = varying(runs), defaultdict(list)
    for run in runs:
        words = [f"--{n} {run.options.get(n)}" for n in names]
        groups[" ".join(words) or "all alike"].append(run)
    return dict(groups)


def last_score(run: Run) -> tuple[str, float] | None:
    """The last score: its title and value."""
    for kind, (name, title, unit) in SCORES.items():
        if points := run.curve(kind, name):
            return f"{title}{',' * bool(unit)}{unit}", points[-1][1]
    return None


def score_rows(groups: dict[str, list[Run]], probes: dict) -> list[tuple]:
    """(options, score, runs, mean, smallest, largest) of each group and of each of its probes."""
    rows = []
    for words, runs in groups.items():
        values = defaultdict(list)
        for run in runs:
            for name, value in filter(None, [last_score(run), *probes[run.folder]]):
                values[name].append(value)
        rows += [
            (words, name, len(x), *(round(float(f(x)), 2) for f in (np.mean, np.min, np.max)))
            for name, x in values.items()
        ]
    return rows


def compare(runs: list[Run], folder: Path, data: str = "") -> Path:
    """Write compare.html into the folder. Returns its path."""
    groups, probes, names = grouped(runs), probe_scores(folder, runs), varying(runs)
    rows = []
    for run in runs:
        score, said = last_score(run), ", ".join(f.name for f in diagnose(run))
        more = "; ".join(f"{name} {value:.2f}" for name, value in probes[run.folder])
        epochs = len(run.records.get("epoch", []))
        options = [str(run.options.get(n)) for n in names]
        values = (run.options["seed"], epochs, round(score[1], 2) if score else "", more, said)
        rows.append((run.folder.name, *options, *values))
    header = ("run", *names, "seed", "epochs", "last score", "probes", "diagnosis")
    body = [
        f"<h1>{len(runs)} runs</h1><p class=soft>{escape(str(folder))}</p>",
        "<h2>Scores</h2><p class=soft>Runs that differ in nothing but the seed count as one.</p>",
        table(score_rows(groups, probes), ("options", "score", "runs", "mean", "smallest", "largest"), "scores"),
        "<h2>Runs</h2><p class=soft>What differs in their options. A head sorts.</p>",
        table(rows, header, "runs"), "<h2>Curves</h2>", figures(overlaid(runs)),
    ]  # fmt: skip
    shown, content = [], {"sprite": None, "map": None}
    sprites = None
    for run in runs[:MOST_NEIGHBOURS]:
        try:
            embedded = embed_run(run, data)
        except InputError as error:
            shown.append(f"<p class=soft>{escape(run.folder.name)}: {escape(str(error))}</p>")
            continue
        sprites = sprites or Sprite(embedded.thumbs)
        part = neighbours(embedded, sprites)
        shown.append(f"<figure><h3>{escape(run.folder.name)}</h3>{part}</figure>")
    if sprites:
        content["sprite"] = sprites.data()
    body.append(f'<div class="row">{"".join(shown)}</div>')
    write_page(folder / "compare.html", f"{len(runs)} runs", body, content)
    return folder / "compare.html"


def overlaid(runs: list[Run]) -> list[str]:
    """A panel for each value that is known, with a curve of every run."""
    parts = []
    for (kind, name), (title, _) in LOGGED.items():
        found = {label(run): run.curve(kind, name) for run in runs}
        found = {name: points for name, points in found.items() if points}
        if found:
            parts.append(svg(panel(title, found)))
    return parts


def label(run: Run) -> str:
    return f"{run.folder.name[5:19]} {run.options['seed']}"
