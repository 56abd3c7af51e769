"""Curves and bars as matplotlib figures, for the page (SVG in the page's own colours) and files."""

import io
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from adco.report.runs import Run

INK = "#010203"  # the colour of text and axes: on the page it becomes currentColor
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "adco", "axes.spines.top": False, "font.size": 9,
    "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
    "axes.formatter.limits": (-3, 5), "axes.grid": True, "grid.alpha": 0.15, "lines.linewidth": 1.4,
    **{f"{name}color": INK for name in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")},
}  # fmt: skip
NO_DATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
MOST_POINTS = 400  # of a curve; longer ones are drawn as means of neighbours
PLACE, SIZE = (0.15, 0.17, 0.82, 0.70), (3.6, 2.3)
# What is logged: its kind, name and title, and the healthy range (docs/report.md).
LOGGED = {
    ("train", "loss"): ("encoder's loss, nats", None),
    ("train", "mass"): ("softmax mass on the keys", (0.01, 0.9)),
    ("knn", "accuracy"): ("kNN accuracy, %", None),
    ("rank", "rank"): ("effective rank", None),
    ("train", "top1"): ("own key is nearest, share", None),
    ("train", "spread"): ("spread of the queries", (0.1, 1)),
    ("train", "idle"): ("idle adversaries, share", (0, 0.99)),
    ("train", "grad_norm"): ("length of the gradient", None),
    ("train", "data_share"): ("waiting for pictures, share", (0, 0.1)),
    ("train", "dropped"): ("dropped steps", (0, 0)),
    ("adversaries", "twins"): ("twins among adversaries, share", (0, 0.1)),
    ("adversaries", "dead"): ("adversaries without attention", (0, 0.5)),
    ("adversaries", "turned"): ("turn of adversaries, radians an epoch", (0.01, 1.5)),
}


@matplotlib.rc_context(STYLE)
def panel(title: str, curves: dict[str, list], xlabel="step", band=None, size=SIZE) -> Figure:
    """One axis with curves [(x, y), ...] by name, and the healthy range behind them."""
    figure = Figure(figsize=size)
    axis = figure.add_axes(PLACE)
    for name, points in curves.items():
        x, y = np.array(points, float).reshape(-1, 2).T
        if len(x) > MOST_POINTS:
            parts = [np.array_split(values, MOST_POINTS) for values in (x, y)]
            x, y = (np.array([part.mean() for part in of]) for of in parts)
        axis.plot(x, y, marker="." if len(x) < 40 else "", markersize=4, label=name)
    low, high = axis.get_ylim()
    if band:
        axis.axhspan(*band, color="tab:green", alpha=0.12, linewidth=0 if band[0] < band[1] else 3)
        axis.set_ylim(min(low, 0), max(high, min(band[1], 2 * abs(high) + 0.05)))
    if len(curves) > 1:
        axis.legend(fontsize=7)
    axis.set(title=title, xlabel=xlabel)
    return figure


def curves(run: Run) -> dict[str, Figure]:
    """A panel for every value that the run has logged, the known ones first."""
    kinds = [k for k in run.records if k not in ("warning", "epoch", "time")]
    names = [
        (kind, name) for kind in kinds for name, value in run.records[kind][-1].items()
        if name not in ("epoch", "step", "kind", "time") and isinstance(value, int | float | None)
    ]  # fmt: skip
    found = {}
    for kind, name in sorted(names, key=lambda n: [*LOGGED, n].index(n)):
        title, band = LOGGED.get((kind, name), (f"{name.replace('_', ' ')} ({kind})", None))
        if (kind, name) == ("train", "loss"):
            band = (0, 0.95 * run.chance)
        found[f"{kind}-{name}"] = panel(title, {name: run.curve(kind, name)}, band=band)
    return found


@matplotlib.rc_context(STYLE)
def bars(title: str, groups: dict[str, Iterable], names: list, stacked=False, xlabel="") -> Figure:
    """Bars of several groups over names, beside each other or on each other."""
    figure = Figure(figsize=(max(SIZE[0], min(8, 0.35 * len(names) + 1)), SIZE[1]))
    axis, x, base = figure.add_axes(PLACE), np.arange(len(names)), np.zeros(len(names))
    width = 0.85 if stacked else 0.85 / len(groups)
    for i, (label, values) in enumerate(groups.items()):
        values = np.array(list(values), float)
        shift = 0 if stacked else (i - (len(groups) - 1) / 2) * width
        axis.bar(x + shift, values, width, bottom=base if stacked else 0, label=label)
        base += values
    few = x[:: max(1, len(x) // 20)]
    axis.set_xticks(few, [str(names[i])[:12] for i in few], rotation=0 if len(few) < 12 else 90)
    axis.set(title=title, xlabel=xlabel)
    axis.legend(fontsize=7)
    return figure


def where_time_went(run: Run) -> Figure | None:
    """Seconds of each epoch: pictures, steps, score, saving."""
    epochs = run.records.get("epoch", [])
    upkeep = {r["epoch"]: r for r in run.records.get("time", [])}
    if not epochs:
        return None
    groups = {
        "pictures": [r["data_seconds"] or 0 for r in epochs],
        "steps": [(r["seconds"] or 0) - (r["data_seconds"] or 0) for r in epochs],
        "score": [upkeep.get(r["epoch"], {}).get("score_seconds", 0) for r in epochs],
        "saving": [upkeep.get(r["epoch"], {}).get("save_seconds", 0) for r in epochs],
    }
    names = [r["epoch"] + 1 for r in epochs]
    return bars("where the time went, seconds", groups, names, stacked=True, xlabel="epoch")


def svg(figure: Figure) -> str:
    """For the page: no metadata, ink in the page's own colour."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata=NO_DATA)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
