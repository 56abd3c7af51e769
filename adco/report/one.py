"""The page of one run: report.html in its folder."""

import shlex
from html import escape

import numpy as np
from matplotlib.figure import Figure

from adco.pretrain.options import PretrainConfig
from adco.report import bank
from adco.report.diagnosis import Finding, diagnose
from adco.report.embedded import KNN_K, Embedded, embed_run, maps, scores_of
from adco.report.figures import bars, curves, panel, svg, where_time_went
from adco.report.page import Sprite, cards, figures, table, write_page
from adco.report.runs import Run
from adco.report.terminal import summary
from ops.errors import InputError
from ops.options import differences

QUERIES, NEIGHBOURS, HARDEST = 10, 8, 8
MOST_CLASSES = 20  # in the confusion table


def report_one(run: Run, data: str = "") -> dict[str, Figure]:
    """Write the page. Returns the figures on it, by name."""
    found = diagnose(run)
    body = [heading(run), findings(found)]
    drawn = curves(run)
    if time := where_time_went(run):
        drawn["time"] = time
    content, parts = {"sprite": None, "map": None}, []
    try:
        embedded = embed_run(run, data)
        sprite = Sprite(embedded.thumbs)
        parts = [results(embedded), neighbours(embedded, sprite)]
        if len(embedded.features) > 10:
            parts.append(MAP)
            content["map"] = map_data(embedded, sprite)
        if embedded.W is not None:
            parts.append(adversaries(embedded, sprite, run.options, drawn))
        content["sprite"] = sprite.data()
    except InputError as error:
        parts = [f"<h2>Pictures</h2><p class=soft>Not shown: {escape(str(error))}</p>"]
    bank_names = ("attention", "classes")
    plain = [svg(figure) for name, figure in drawn.items() if name not in bank_names]
    body += ["<h2>Curves</h2>", CURVES, figures(plain), warnings(run), *parts, how(run)]
    write_page(run.folder / "report.html", f"Run {run.folder.name}", body, content)
    return drawn


CURVES = (
    "<p class=soft>Everything that was logged, over the steps. Green: where a healthy run lies.</p>"
)
MAP = (
    "<h2>Map of the features</h2><p class=soft>A point is a picture: point at it to see it. Near "
    "points have similar features. Crosses are adversaries. A class in the legend goes and comes "
    'with a click.</p><p><select id="kind"></select></p><canvas id="map"></canvas>'
    '<div class="legend" id="legend"></div>'
)


def heading(run: Run) -> str:
    rows, o = dict(summary(run)), run.options
    text = f"{o['arch']} on {o['dataset']}, {o['negatives']} negatives, {o['epochs']} epochs"
    return f"<h1>{escape(text)}</h1><p class=soft>{escape(str(run.folder))}</p>{cards(rows)}"


def findings(found: list[Finding]) -> str:
    parts = [
        f"<div class=note><b>{f.name}</b>{escape(f.evidence)}<br>{escape(f.advice)}</div>"
        for f in found
    ]
    fine = "<div class='note fine'><b>nothing found</b>None of the known failures shows.</div>"
    return "<h2>Diagnosis</h2>" + ("".join(parts) or fine)


def warnings(run: Run) -> str:
    rows = [(r["time"], r["step"], r["text"]) for r in run.records.get("warning", [])]
    return "<h2>Warnings</h2>" + table(rows[-50:], ("time", "step", "")) if rows else ""


def how(run: Run) -> str:
    """What was run: command, data, versions, options that are no defaults, all options."""
    about, options = run.about, run.options
    rows = [("command", shlex.join(about.get("command", []))), ("started", about.get("started"))]
    for part, known in (about.get("data") or {}).items():
        text = f"{known['pictures']} pictures in {known['classes']} classes"
        rows.append((part, f"{text}, names and labels {known['sha256'][:8]}"))
    rows += [("commit", about.get("commit")), ("machine", about.get("machine"))]
    rows.append(("versions", ", ".join(f"{n} {v}" for n, v in about.get("versions", {}).items())))
    recipe = "\n".join(about.get("recipe") or [])
    every = "\n".join(f"--{name} {value}" for name, value in options.items())
    changed = [line for line in differences(vars(PretrainConfig()), options)]
    return (
        f"<h2>What was run</h2>{table(rows)}" + f"<pre>{escape(recipe)}</pre>" * bool(recipe)
        + f"<details><summary>{len(changed)} options differ from the published run</summary>"
        f"<pre>{escape(every)}</pre></details>"
    )  # fmt: skip


def results(e: Embedded) -> str:
    """Scores against random weights and pixels, and which classes are confused."""
    if e.labels is None:
        return ""
    kinds = {"pre-trained": e.features, "random weights": e.random}
    if e.pixels is not None:
        kinds["raw pixels"] = e.pixels
    scored = {name: scores_of(e, rows) for name, rows in kinds.items()}
    rows = [
        (name, round(knn, 1), round(logistic, 1)) for name, (knn, logistic, _) in scored.items()
    ]
    wanted, answers = e.labels[e.cut :], scored["pre-trained"][2]
    counts = np.zeros((len(e.classes),) * 2, int)
    np.add.at(counts, (wanted, answers), 1)
    worst = np.argsort(np.diag(counts) - counts.sum(1), kind="stable")[:MOST_CLASSES]
    worst = np.sort(worst)
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f"<th>{escape(e.classes[c])}</th>" for c in worst)
    lines = "".join(
        f"<tr><th>{escape(e.classes[a])}</th>" + "".join(cell(a, b, counts, total) for b in worst) + "</tr>"
        for a in worst
    )  # fmt: skip
    return (
        "<h2>Result</h2>" + table(rows, ("features", "kNN, %", "logistic regression, %"))
        + f"<p class=soft>Of {len(wanted)} pictures that were not trained on, by {e.cut} of train; "
        f"{KNN_K} neighbours vote.</p><h3>What kNN takes for what (rows: the label; percent)</h3>"
        f'<div class="scroll"><table class="confusion"><tr><th></th>{head}</tr>{lines}</table></div>'
    )  # fmt: skip


def cell(a: int, b: int, counts, total) -> str:
    share = counts[a, b] / total[a, 0]
    colour = "var(--good)" if a == b else "var(--bad)"
    style = f"background:color-mix(in srgb, {colour} {70 * share:.0f}%, transparent)"
    return f'<td style="{style}">{100 * share:.0f}</td>' if share else "<td></td>"


def neighbours(e: Embedded, sprite: Sprite) -> str:
    """Rows of a picture that was not trained on and the nearest ones of train."""
    queries = np.arange(e.cut, len(e.features))
    if e.labels is not None:
        queries = e.cut + np.unique(e.labels[e.cut :], return_index=True)[1]
    queries = queries[:QUERIES]
    rows = bank.unit(e.features)
    _, found = bank.nearest(rows[queries], rows[: e.cut], NEIGHBOURS)
    lines = []
    for query, places in zip(queries, found, strict=True):
        frames = None
        if e.labels is not None:
            frames = ["same" if e.labels[i] == e.labels[query] else "other" for i in places]
        line = sprite.tags([query]) + "<span></span>" + sprite.tags(places, frames)
        lines.append(f'<div class="thumbs">{line}</div>')
    what = (
        "Left a picture that was not trained on, then the nearest ones of train by their features."
    )
    green = " Green: of the same class." if e.labels is not None else ""
    return f"<h2>Neighbours</h2><p class=soft>{what}{green}</p>{''.join(lines)}"


def map_data(e: Embedded, sprite: Sprite) -> dict:
    chosen, places, crosses = maps(e)
    labels = None if e.labels is None else e.labels[chosen].tolist()
    return {
        "places": {name: np.round(xy, 3).tolist() for name, xy in places.items()},
        "adversaries": None if crosses is None else np.round(crosses, 3).tolist(),
        "slots": [sprite.slot(i) for i in chosen], "labels": labels, "classes": list(e.classes),
    }  # fmt: skip


def adversaries(e: Embedded, sprite: Sprite, options: dict, drawn: dict[str, Figure]) -> str:
    """Attention, twins, dead ones, classes; and what the hardest ones point at."""
    weight = options.get("mem_weight") or 1.0
    total, foolers = bank.attention(e.queries, e.keys, e.W, options["mem_t"], weight)
    numbers = {
        "adversaries": len(e.W), "get attention as of": f"{bank.effective_number(total):.0f}",
        "have a twin": f"{bank.twins(e.W).mean():.1%}", "dead": f"{bank.dead(total).mean():.1%}",
        "pictures that one fools": f"{(foolers >= 0).mean():.1%}",
    }  # fmt: skip
    ranked = list(enumerate(np.sort(total)[::-1] / max(total.mean(), 1e-30), 1))
    drawn["attention"] = panel(
        "attention, in means", {"": ranked}, xlabel="adversary, by attention"
    )
    parts = [svg(drawn["attention"])]
    if e.labels is not None:
        _, place = bank.nearest(e.W, e.embeddings[: e.cut], 1)
        shares = bank.class_shares(e.labels[: e.cut], e.labels[place[:, 0]], len(e.classes))
        groups = dict(zip(("pictures", "adversaries"), shares, strict=True))
        drawn["classes"] = bars("share of each class", groups, list(e.classes))
        parts.append(svg(drawn["classes"]))
    hardest = np.argsort(-total)[:HARDEST]
    _, places = bank.nearest(e.W[hardest], e.embeddings[: e.cut], NEIGHBOURS)
    lines = []
    for number, near in zip(hardest, places, strict=True):
        fooled = np.flatnonzero(foolers == number)
        text = f"number {number}: {total[number] / total.sum():.1%} of the attention, fools {len(fooled)}"
        row = sprite.tags(near) + "<span></span>" + sprite.tags(fooled[:6])
        lines.append(f'<h3>{text}</h3><div class="thumbs">{row}</div>')
    return (
        f"<h2>Adversaries</h2>{cards(numbers)}<p class=soft>Attention is their share of the softmax at --mem_t, "
        f"of two training views each of {len(foolers)} pictures. A query is fooled where an adversary is nearer "
        f"than its own key; a twin is at a cosine above {bank.TWIN}; dead is below a hundredth of the mean.</p>"
        f"{figures(parts)}<h3>The hardest: the pictures they point at, then some that they fool</h3>"
        + "".join(lines)
    )  # fmt: skip
