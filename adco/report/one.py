"""The page of one run, report.html in its folder: what the script of page.html shows."""

from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import normalize

from adco.pretrain.monitor import LOOKED_AT, lie, spread
from adco.pretrain.options import PretrainConfig
from adco.report import bank
from adco.report.diagnosis import diagnose
from adco.report.embedded import KNN_K, SMALL, embed_run, maps, scores_of
from adco.report.page import Sprite, curves, panel, svg, write_page
from adco.report.runs import Run
from ops.errors import InputError
from ops.options import differences

QUERIES, NEIGHBOURS, HARDEST = 10, 8, 8
MOST_CONFUSED = 100  # classes, of which a table can be read


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
            chosen, places = maps(e)
            slots = sprite(e, chosen)
            sections.append({"is": "map", "map": places, "slots": slots, "classes": e.classes})
        sections += adversaries(e, sprite, run, drawn) if e.W is not None else []
    except InputError as error:
        sections.append({"is": "pictures", "note": f"Not shown: {error}"})
    changed = differences(vars(PretrainConfig()), o)
    sections.append({"is": "how", "about": run.about, "changed": changed})
    title = f"{o['arch']} on {o['dataset']}, {o['negatives']} negatives, {o['epochs']} epochs"
    write_page(run.folder / "report.html", title, sections, sprite)
    rows = [row.values() for section in result for row in section["rows"]]
    name = f"kNN (k {KNN_K}) and logistic regression"
    return drawn, {f"{name}, {of}": f"{knn:.1f} %, {linear:.1f} %" for of, knn, linear in rows}


def results(e: SimpleNamespace, run: Run) -> list[dict]:
    """Scores against random weights and pixels, and which classes are confused."""
    if e.labels is None or len(np.unique(e.labels[: e.cut])) < 2:
        return []
    kinds = {"pre-trained": e.features, "random weights": e.random}
    kinds |= {"raw pixels": e.pixels} if run.options["image_size"] <= SMALL else {}
    scores = {name: scores_of(e, features) for name, features in kinds.items()}
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
    queries, rows = e.cut + np.array(first[:QUERIES]), normalize(e.features)
    _, found = bank.nearest(rows[queries], rows[: e.cut], NEIGHBOURS)
    pairs = zip(queries, found, strict=True)
    lines = [{"groups": [sprite(e, [query]), sprite(e, places)]} for query, places in pairs]
    return {"is": "neighbours", "thumbs": lines, "framed": e.labels is not None}


def adversaries(e: SimpleNamespace, sprite: Sprite, run: Run, drawn: dict) -> list[dict]:
    """Attention, twins, dead ones, classes; and what the hardest ones point at."""
    tau, weight = run.options["mem_t"], run.options["mem_weight"]
    total, foolers = bank.attention(e.queries, e.keys, e.W, tau, weight)
    ranked = list(enumerate(np.sort(total)[::-1] / total.mean(), 1))
    drawn["attention"] = panel("attention, in means", {"": ranked}, "adversary, by attention")
    some, pictures = (torch.tensor(x) for x in (e.W[: 4 * LOOKED_AT], e.embeddings[: e.cut]))
    cards = spread(torch.tensor(total)) | {"fooled": float((foolers >= 0).mean())}
    cards |= {"K": len(e.W), **lie(some, pictures, None, tau)}
    section = {"is": "adversaries", "figures": [svg(drawn["attention"])], "numbers": cards}
    if e.labels is not None:
        labels = e.labels[: e.cut]
        near = labels[bank.nearest(e.W, e.embeddings[: e.cut], 1)[1][:, 0]]
        parts = [bank.shares(of, len(e.classes)) for of in (labels, near)]
        section |= {"shares": parts, "classes": e.classes}
    hardest, lines = np.argsort(-total)[:HARDEST], []
    _, places = bank.nearest(e.W[hardest], e.embeddings[: e.cut], NEIGHBOURS)
    for number, near in zip(hardest, places, strict=True):
        fooled = np.flatnonzero(foolers == number)
        text = f"number {number}: {total[number] / total.sum():.1%}, fools {len(fooled)}"
        lines.append({"text": text, "groups": [sprite(e, near), sprite(e, fooled[:6])]})
    return [section, {"is": "hardest", "thumbs": lines}]
