"""The page of one run, report.html in its folder: sections for the script of page.html."""

import shlex
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure

from adco.pretrain.options import PretrainConfig
from adco.report import bank
from adco.report.diagnosis import diagnose
from adco.report.embedded import KNN_K, SMALL, embed_run, maps, scores_of
from adco.report.figures import curves, panel, svg
from adco.report.page import Sprite, write_page
from adco.report.runs import Run
from ops.errors import InputError
from ops.options import differences

QUERIES, NEIGHBOURS, HARDEST = 10, 8, 8


def report_one(run: Run, data: str = "") -> dict[str, Figure]:
    """Write the page. Returns the figures on it, by name."""
    o, drawn, sprite = run.options, curves(run), Sprite()
    title = f"{o['arch']} on {o['dataset']}, {o['negatives']} negatives, {o['epochs']} epochs"
    sections = [
        {"title": title, "note": str(run.folder), "cards": run.scores()},
        {"title": "Diagnosis", "findings": [f._asdict() for f in diagnose(run)]},
        {"title": "Curves", "note": "Everything that was logged. Green: where a healthy run lies.",
         "figures": [svg(figure) for figure in drawn.values()]},
    ]  # fmt: skip
    if warned := run.records.get("warning"):
        rows = [[r["time"], r["step"], r["text"]] for r in warned[-50:]]
        sections.append({"title": "Warnings", "header": ["time", "step", ""], "rows": rows})
    try:
        e = embed_run(run, data)
        sections += [results(e, o), neighbours(e, sprite), embedding_map(e, sprite)]
        sections += adversaries(e, sprite, o, drawn)
    except InputError as error:
        sections.append({"title": "Pictures", "note": f"Not shown: {error}"})
    sections.append(how(run))
    write_page(run.folder / "report.html", title, [s for s in sections if s], sprite)
    return drawn


def how(run: Run) -> dict:
    """What was run."""
    about = run.about
    rows = [["command", shlex.join(about.get("command", []))]]
    for part, of in (about.get("data") or {}).items():
        text = f"{of['pictures']} pictures in {of['classes']} classes"
        rows.append([part, f"{text}, names and labels {of['sha256'][:8]}"])
    rows += [[name, str(about.get(name))] for name in ("started", "commit", "machine")]
    rows.append(["versions", ", ".join(f"{n} {v}" for n, v in about.get("versions", {}).items())])
    rows += [["recipe", line.removeprefix("recipe: ")] for line in about.get("recipe") or []]
    changed = differences(vars(PretrainConfig()), run.options)
    rows += [["option", line.replace("was", "is by default", 1)] for line in changed]
    return {"title": "What was run", "rows": rows}


def results(e: SimpleNamespace, options: dict) -> dict | None:
    """Scores against random weights and pixels, and which classes are confused."""
    if e.labels is None:
        return None
    kinds = {"pre-trained": e.features, "random weights": e.random}
    kinds |= {"raw pixels": e.pixels} if options["image_size"] <= SMALL else {}
    scored = {name: scores_of(e, rows) for name, rows in kinds.items()}
    counts = np.zeros((len(e.classes),) * 2, int)
    np.add.at(counts, (e.labels[e.cut :], scored["pre-trained"][2]), 1)
    note = f"Of {len(e.labels) - e.cut} pictures that were not trained on, by {e.cut} of train; "
    return {
        "title": "Result", "note": f"{note}{KNN_K} neighbours vote.",
        "header": ["features", "kNN, %", "logistic regression, %"],
        "rows": [[name, round(knn, 1), round(fit, 1)] for name, (knn, fit, _) in scored.items()],
        "confusion": counts.tolist(), "classes": e.classes,
    }  # fmt: skip


def neighbours(e: SimpleNamespace, sprite: Sprite) -> dict:
    """Rows of a picture that was not trained on and the nearest ones of train."""
    first = range(len(e.features) - e.cut)
    if e.labels is not None:
        first = np.unique(e.labels[e.cut :], return_index=True)[1]
    queries, rows = e.cut + np.array(first[:QUERIES]), bank.unit(e.features)
    _, found = bank.nearest(rows[queries], rows[: e.cut], NEIGHBOURS)
    lines = [
        {"groups": [sprite(e.thumbs, e.labels, [query]), sprite(e.thumbs, e.labels, places)]}
        for query, places in zip(queries, found, strict=True)
    ]
    note = "Left a picture that was not trained on, then the nearest ones of train by features."
    return {"title": "Neighbours", "note": note, "thumbs": lines, "framed": e.labels is not None}


def embedding_map(e: SimpleNamespace, sprite: Sprite) -> dict | None:
    if len(e.features) < 10:
        return None
    chosen, places = maps(e)
    return {
        "title": "Map of the features", "classes": e.classes,
        "map": {name: np.round(xy, 3).tolist() for name, xy in places.items()},
        "slots": sprite(e.thumbs, e.labels, chosen),
        "note": "A point is a picture: point at it to see it. Near points have similar features. "
        "Crosses are adversaries. A click on a class in the legend hides it.",
    }  # fmt: skip


def adversaries(e: SimpleNamespace, sprite: Sprite, options: dict, drawn: dict) -> list[dict]:
    """Attention, twins, dead ones, classes; and what the hardest ones point at."""
    if e.W is None:
        return []
    total, foolers = bank.attention(
        e.queries, e.keys, e.W, options["mem_t"], options.get("mem_weight", 1.0)
    )
    ranked = list(enumerate(np.sort(total)[::-1] / total.mean(), 1))
    drawn["attention"] = panel("attention, in means", {"": ranked}, "adversary, by attention")
    section = {
        "title": "Adversaries", "figures": [svg(drawn["attention"])],
        "cards": {
            "adversaries": str(len(e.W)), "twins": f"{bank.twins(e.W).mean():.1%}",
            "effective number, by attention": f"{bank.effective_number(total):.0f}",
            "dead": f"{bank.dead(total).mean():.1%}",
            "queries that one fools": f"{(foolers >= 0).mean():.1%}",
        },
        "note": f"Attention is an adversary's share of the softmax at --mem_t, of two training "
        f"views each of {len(foolers)} pictures. A query is fooled where an adversary is nearer "
        f"than its own key. A twin has another one at a cosine above {bank.TWIN}. A dead one gets "
        "less than a hundredth of the mean attention.",
    }  # fmt: skip
    if e.labels is not None:
        labels = e.labels[: e.cut]
        near = labels[bank.nearest(e.W, e.embeddings[: e.cut], 1)[1][:, 0]]
        parts = [bank.shares(of, len(e.classes)).tolist() for of in (labels, near)]
        section |= {"shares": parts, "classes": e.classes}
    hardest, lines = np.argsort(-total)[:HARDEST], []
    _, places = bank.nearest(e.W[hardest], e.embeddings[: e.cut], NEIGHBOURS)
    for number, near in zip(hardest, places, strict=True):
        fooled = np.flatnonzero(foolers == number)
        text = f"number {number}: {total[number] / total.sum():.1%}, fools {len(fooled)}"
        groups = [sprite(e.thumbs, e.labels, of) for of in (near, fooled[:6])]
        lines.append({"text": text, "groups": groups})
    note = "Those with the most attention: the pictures they point at, then some that they fool."
    return [section, {"title": "The hardest adversaries", "note": note, "thumbs": lines}]
