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
from adco.report.diagnosis import FEWEST, diagnose
from adco.report.drawing import LOGGED, Sprite, curves, panel, svg, write_page
from adco.report.embedded import embed_run, nearest
from adco.report.runs import DEFAULTS, Run, probe_scores
from ops.errors import InputError
from ops.options import ProcessOptions, differences

QUERIES, NEIGHBOURS, HARDEST = 10, 8, 8
MOST_CONFUSED = 100  # classes, of which a table can be read
# Options that make no other run.
NO_OTHER_RUN = {
    *("save_path", "log_path", "resume", "workers", "print_freq", "report_epochs", "seed"),
    *ProcessOptions.__dataclass_fields__,
}
TOO_FEW = f"Nothing can be told of fewer than {FEWEST} logged steps."
MOST_SHOWN = 6  # runs of which neighbours are shown


def report_one(run: Run, data: str = "") -> tuple[dict[str, Figure], dict[str, str]]:
    """Write the page. Returns the figures on it, and rows of its result, by name."""
    drawn, sprite, o, result = curves(run), Sprite(), run.options, []
    findings = [f._asdict() for f in diagnose(run)]
    told = findings or len(run.records.get("train", [])) >= FEWEST
    sections = [
        {"is": "run", "cards": run.scores(), "note": str(run.folder)},
        {"is": "diagnosis", **({"findings": findings} if told else {"note": TOO_FEW})},
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
    epochs = run.epochs_done()
    title = f"{o['arch']} on {o['dataset']}, {o['negatives']} negatives, {epochs} epochs"
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
    note = f"Of {len(e.features) - e.cut} pictures ({e.unseen}), by {e.cut} of train. "
    note += f"{embedded.KNN_K} neighbours vote. {other_pictures(e)}"
    section = {"is": "result", "rows": rows, "classes": e.classes, "note": note}
    if len(e.classes) <= MOST_CONFUSED:
        answers, classes = scores["pre-trained"][2], range(len(e.classes))
        section["confusion"] = confusion_matrix(e.labels[e.cut :], answers, labels=classes)
    return [section]


def other_pictures(e: SimpleNamespace) -> str:
    return f"These are not the pictures of the run: {e.other}." if e.other else ""


def neighbours(e: SimpleNamespace, sprite: Sprite) -> dict:
    """Rows of a picture that was not trained on, where there are such, and the nearest of train."""
    first = range(len(e.features) - e.cut)
    if e.labels is not None:
        first = np.unique(e.labels[e.cut :], return_index=True)[1]
    queries = e.cut + np.array(first[:QUERIES])
    _, found = nearest(e.features[queries], e.features[: e.cut], NEIGHBOURS)
    pairs = zip(queries, found, strict=True)
    lines = [{"groups": [sprite(e, [query]), sprite(e, places)]} for query, places in pairs]
    note = f"Those on the left: {e.unseen}. {other_pictures(e)}"
    return {"is": "neighbours", "thumbs": lines, "framed": e.labels is not None, "note": note}


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
    values = {n: {value_of(run, n) for run in runs} for n in names}
    values["data"].discard("")  # a run that does not tell
    crops = any(run.options["multi_crop"] for run in runs)
    apart = [n for n in names if len(values[n]) > 1 and n not in NO_OTHER_RUN]
    return [n for n in apart if crops or not n.endswith("_crops")]


def value_of(run: Run, name: str) -> str:
    """Of an option, for a table; of the data, what was found there."""
    if name != "data":
        return str(run.options.get(name))
    parts = (run.about.get("data") or {}).items()
    return ", ".join(f"{x['pictures']} in {part} ({x['sha256']:.8})" for part, x in parts)


def grouped(runs: list[Run], probes: dict[Path, dict[str, float]]) -> list[dict]:
    """A row for each score of those runs that differ in nothing but the seed."""
    names, found = varying(runs), defaultdict(list)
    for run in runs:
        crops = run.options["multi_crop"]
        own = [n for n in names if crops or not n.endswith("_crops")]
        words = " ".join(f"--{n} {value_of(run, n)}" for n in own) or "all alike"
        done = run.epochs_done()
        words += f", after {done} epochs" * (" of " in done)
        last = {t + u: run.curve(kind, name)[-1:] for kind, (name, t, u) in SCORES.items()}
        # At step 0 it is that of the weights that the run began with.
        scores = {title: points[0][1] for title, points in last.items() if points and points[0][0]}
        for title, value in (scores | probes[run.folder]).items():
            found[words, title].append(value)
    rows = []
    for (words, title), x in found.items():
        rows.append({"options": words, "score": title, "runs": len(x)})
        rows[-1] |= {"mean": np.mean(x), "smallest": min(x), "largest": max(x)}
    return rows


def compare(runs: list[Run], folder: Path, data: str = "") -> dict[str, Figure]:
    """Write compare.html into the folder. Returns the figures on it."""
    probes, sprite = {run.folder: probe_scores(folder, run) for run in runs}, Sprite()
    rows, shown, panels, names = [], [], {key: {} for key in LOGGED}, varying(runs)
    for number, run in enumerate(runs, 1):
        row = {"": number, "run": run.folder.name, "seed": run.options["seed"], **run.scores()}
        row |= {f"--{n}": value_of(run, n) for n in names} | probes[run.folder]
        rows.append({**row, "diagnosis": ", ".join(f.name for f in diagnose(run))})
        for key, found in panels.items():
            found[f"{number}"] = run.curve(*key)
        if number > MOST_SHOWN:
            continue
        try:
            part = neighbours(embed_run(run, data), sprite)
        except InputError as error:
            part = {"note": f"Not shown: {error}"}
        shown.append({**part, "is": "", "title": f"{number}  {run.folder.name}"})
    drawn = {
        "-".join(key): panel(LOGGED[key][0], found)
        for key, found in panels.items()
        if any(found.values())
    }
    few = f"Of the first {MOST_SHOWN} runs." if len(runs) > MOST_SHOWN else ""
    sections = [
        {"is": "runs", "note": str(folder)},
        {"is": "scores", "rows": grouped(runs, probes), "sorts": True},
        {"is": "options", "rows": rows, "sorts": True},
        {"is": "courses", "figures": [svg(figure) for figure in drawn.values()]},
        {"is": "neighbours", "beside": shown, "note": few},
    ]
    write_page(folder / "compare.html", f"{len(runs)} runs", sections, sprite)
    return drawn
