"""The pages, report.html of one run and compare.html of several: what page.html is to show."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from adco.pretrain.monitor import LOOKED_AT, SCORES, lie, spread
from adco.report import embedded
from adco.report.diagnosis import diagnose
from adco.report.drawing import LOGGED, Sprite, curves, panel, svg, write_page
from adco.report.embedded import embed_run, nearest
from adco.report.runs import DEFAULTS, Run, probe_scores
from ops.errors import InputError
from ops.options import differences

QUERIES, NEIGHBOURS, HARDEST = 10, 8, 8
MOST_CONFUSED = 100  # classes, of which a table can be read
# Options that make no other run.
PLACES = ("save_path", "log_path", "resume", "workers", "print_freq", "report_epochs", "data")
MOST_SHOWN = 6  # runs of which neighbours are shown


def report_one(run: Run, data: str = "") -> tuple[dict[str, Figure], dict[str, str]]:
    """Write the page. Returns the figures on it, and rows of its result, by name."""
    drawn, sprite, o, result = curves(run), Sprite(), run.options, []
    sections = [
        {"is": "run", "cards": run.scores(), "note": str(run.folder)},
        {"is": "diagnosis", "findings": [f._asdict() for f in diagnose(run)]},
        {"is": "curves", "figures": [svg(figure) for figure in drawn.values()]},
    ]
    if warned := run.records.get("warning"):
        rows = [{name: r[name] for name in ("time", "step", "text")} for r in warned[-50:]]
        sections.append({"is": "warnings", "rows": rows})
    try:
        e = embed_run(run, data)
        result = results(e, run)
        sections += [*result, neighbours(e, sprite)]
        if len(e.features) >= 10:
            chosen, places = embedded.maps(e)
            slots = sprite(e, chosen)
            sections.append({"is": "map", "map": places, "slots": slots, "classes": e.classes})
        sections += adversaries(e, sprite, run, drawn) if e.W is not None else []
    except InputError as error:
        sections.append({"is": "pictures", "note": f"Not shown: {error}"})
    changed = differences(DEFAULTS, o)
    sections.append({"is": "how", "about": run.about, "changed": changed})
    title = f"{o['arch']} on {o['dataset']}, {o['negatives']} negatives, {o['epochs']} epochs"
    write_page(run.folder / "report.html", title, sections, sprite)
    rows = [row.values() for section in result for row in section["rows"]]
    name = f"kNN (k {embedded.KNN_K}) and logistic regression"
    return drawn, {f"{name}, {of}": f"{knn:.1f} %, {linear:.1f} %" for of, knn, linear in rows}


def results(e: SimpleNamespace, run: Run) -> list[dict]:
    """Scores against random weights and pixels, and which classes are confused."""
    if e.labels is None or len(np.unique(e.labels[: e.cut])) < 2:
        return []
    kinds = {"pre-trained": e.features, "random weights": e.random}
    kinds |= {"raw pixels": e.pixels} if run.options["image_size"] <= embedded.SMALL else {}
    scores = {name: embedded.scores_of(e, features) for name, features in kinds.items()}
    names = ("features", "kNN, %", "logistic regression, %")
    rows = [dict(zip(names, (of, *x[:2]), strict=True)) for of, x in scores.items()]
    section = {"is": "result", "rows": rows, "classes": e.classes}
    if len(e.classes) <= MOST_CONFUSED:
        answers, classes = scores["pre-trained"][2], range(len(e.classes))
        section["confusion"] = confusion_matrix(e.labels[e.cut :], answers, labels=classes)
    return [section]


def neighbours(e: SimpleNamespace, sprite: Sprite) -> dict:
    """Rows of a picture that was not trained on and the nearest ones of train."""
    first = range(len(e.features) - e.cut)
    if e.labels is not None:
        first = np.unique(e.labels[e.cut :], return_index=True)[1]
    queries = e.cut + np.array(first[:QUERIES])
    _, found = nearest(e.features[queries], e.features[: e.cut], NEIGHBOURS)
    pairs = zip(queries, found, strict=True)
    lines = [{"groups": [sprite(e, [query]), sprite(e, places)]} for query, places in pairs]
    return {"is": "neighbours", "thumbs": lines, "framed": e.labels is not None}


def adversaries(e: SimpleNamespace, sprite: Sprite, run: Run, drawn: dict) -> list[dict]:
    """Attention, twins, dead ones, classes; and what the hardest ones point at."""
    tau = run.options["mem_t"]
    total, foolers = embedded.attention(e.queries, e.keys, e.W, tau)
    ranked = list(enumerate(np.sort(total)[::-1] / total.mean(), 1))
    drawn["attention"] = panel("attention, in means", {"": ranked}, "adversary, by attention")
    some, pictures = (torch.tensor(x) for x in (e.W[: 4 * LOOKED_AT], e.embeddings[: e.cut]))
    cards = spread(torch.tensor(total)) | {"fooled": float((foolers >= 0).mean())}
    cards |= {"K": len(e.W), **lie(some, pictures, None, tau)}
    section = {"is": "adversaries", "figures": [svg(drawn["attention"])], "numbers": cards}
    if e.labels is not None:
        labels = e.labels[: e.cut]
        near = labels[nearest(e.W, e.embeddings[: e.cut], 1)[1][:, 0]]
        parts = [embedded.shares(of, len(e.classes)) for of in (labels, near)]
        section |= {"shares": parts, "classes": e.classes}
    hardest, lines = np.argsort(-total)[:HARDEST], []
    _, places = nearest(e.W[hardest], e.embeddings[: e.cut], NEIGHBOURS)
    for number, near in zip(hardest, places, strict=True):
        fooled = np.flatnonzero(foolers == number)
        text = f"number {number}: {total[number] / total.sum():.1%}, fools {len(fooled)}"
        lines.append({"text": text, "groups": [sprite(e, near), sprite(e, fooled[:6])]})
    return [section, {"is": "hardest", "thumbs": lines}]


# ---- several runs


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
    rows, shown, panels = [], [], {key: {} for key in LOGGED}
    for number, run in enumerate(runs, 1):
        row = {"": number, "run": run.folder.name, "seed": run.options["seed"], **run.scores()}
        row |= {n: str(run.options.get(n)) for n in varying(runs)} | probes[run.folder]
        rows.append({**row, "diagnosis": ", ".join(f.name for f in diagnose(run))})
        for key, found in panels.items():
            found |= {f"{number}": points} if (points := run.curve(*key)) else {}
        if number > MOST_SHOWN:
            continue
        try:
            part = neighbours(embed_run(run), sprite)
        except InputError as error:
            part = {"note": f"Not shown: {error}"}
        shown.append({**part, "is": "", "title": f"{number}  {run.folder.name}"})
    figures = [svg(panel(LOGGED[key][0], found)) for key, found in panels.items() if found]
    sections = [
        {"is": "runs", "note": str(folder)},
        {"is": "scores", "rows": grouped(runs, probes), "sorts": True},
        {"is": "options", "rows": rows, "sorts": True},
        {"is": "curves", "figures": figures},
        {"is": "neighbours", "beside": shown},
    ]
    write_page(folder / "compare.html", f"{len(runs)} runs", sections, sprite)
    return folder / "compare.html"
