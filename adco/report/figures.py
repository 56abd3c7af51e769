"""Curves as matplotlib figures: for the page, as SVG in the page's own colours, and for files."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from adco.report.runs import Run

INK = "#010203"  # the colour of text and axes: on the page it becomes currentColor
INKED = ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "adco", "font.size": 9, "legend.frameon": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.15,
    "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False, "legend.fontsize": 7, "axes.facecolor": "none",
    "figure.facecolor": "none", **{f"{name}color": INK for name in INKED},
}  # fmt: skip
MOST_POINTS = 400  # of a curve; a longer one is drawn as means of neighbours
NO_VALUES = {"epoch", "step", "kind"}
NO_DATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# Of what is logged, in the order of the page: its title, and where a healthy run lies.
LOGGED = {
    ("train", "loss"): ("encoder's loss, nats", None),
    ("train", "mass"): ("softmax mass on the keys", (0.01, 0.9)),
    ("knn", "accuracy"): ("kNN accuracy, %", None),
    ("rank", "rank"): ("effective rank", None),
    ("train", "top1"): ("own key is nearest, share", None),
    ("train", "spread"): ("spread of the queries", (0.1, 1)),
    ("train", "idle"): ("idle adversaries, share", (0, 0.99)),
    ("train", "data_share"): ("waiting for pictures, share", (0, 0.1)),
    ("train", "dropped"): ("dropped steps", (0, 0)),
    ("adversaries", "twins"): ("twins among adversaries, share", (0, 0.1)),
    ("adversaries", "dead"): ("adversaries without attention", (0, 0.5)),
    ("adversaries", "turned"): ("turn of adversaries, radians an epoch", (0.01, 1.5)),
}


@matplotlib.rc_context(STYLE)
def panel(title: str, curves: dict[str, list], xlabel: str = "step", band=None) -> Figure:
    """Curves [(x, y), ...] by name, with the healthy range behind them."""
    figure = Figure(figsize=(3.6, 2.3))
    axis = figure.add_axes((0.14, 0.17, 0.83, 0.70))
    for name, points in curves.items():
        parts = np.array_split(np.array(points, float), min(MOST_POINTS, len(points)))
        x, y = np.array([part.mean(0) for part in parts]).T
        axis.plot(x, y, marker="." if len(x) < 40 else "", markersize=4, label=name)
    if band:
        low, high = axis.get_ylim()
        axis.axhspan(*band, color="tab:green", alpha=0.12, linewidth=0 if band[1] else 3)
        axis.set_ylim(min(low, 0), max(high, min(band[1], 2 * abs(high) + 0.05)))
    if len(curves) > 1:
        axis.legend()
    axis.set(title=title, xlabel=xlabel)
    return figure


def curves(run: Run) -> dict[str, Figure]:
    """A panel for every value that the run has logged, and one of where the time went."""
    kinds = run.records.keys() - {"warning", "epoch", "time"}
    names = {(kind, n) for kind in kinds for n in run.records[kind][-1].keys() - NO_VALUES}
    found = {}
    for kind, name in [*(n for n in LOGGED if n in names), *sorted(names - LOGGED.keys())]:
        title, band = LOGGED.get((kind, name), (f"{name.replace('_', ' ')} ({kind})", None))
        if (kind, name) == ("train", "loss"):
            band = (0, 0.95 * run.watch().chance)
        if points := run.curve(kind, name):
            found[f"{kind}-{name}"] = panel(title, {name: points}, band=band)
    if times := run.records.get("time"):
        parts = {n: [(r["epoch"], r[n]) for r in times] for n in times[0] if n not in NO_VALUES}
        found["time"] = panel("where the time went, seconds", parts, "epoch")
    return found


def svg(figure: Figure) -> str:
    """For the page: no metadata, ink in the page's own colour."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata=NO_DATA)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
