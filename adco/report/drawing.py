"""A page: what its script is to show, as JSON in the template page.html; curves, as SVG in the
page's own colours or for files; and thumbnails.
"""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from simplejpeg import encode_jpeg
from torchvision.utils import make_grid

from adco.report.runs import Run
from ops.files import finite_or_none, told_if_not_written, write_whole

INK = "#010203"  # the colour of text and axes: on the page it becomes currentColor
INKED = ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "adco", "font.size": 9, "legend.frameon": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.15,
    "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False, "legend.fontsize": 7, "axes.facecolor": "none",
    "figure.facecolor": "none", **{f"{name}color": INK for name in INKED},
}  # fmt: skip
COLUMNS = 50  # thumbnails in a row of the sprite
MOST_POINTS = 400  # of a curve; a longer one is drawn as means of neighbours
MOST_IN_LEGEND = 6  # curves; of more each has its name at its end
NO_VALUES = {"epoch", "step", "kind"}
NO_DATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# Of what is logged, in the order of the page: its title, and where a healthy run lies.
LOGGED = {
    ("train", "loss"): ("encoder's loss, nats", None),
    ("train", "mass"): ("softmax mass on the keys", (0.01, 0.99)),
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
    """Curves [(x, y), ...] by name, with the healthy range behind them. A curve without points
    keeps its colour.
    """
    figure = Figure(figsize=(3.6, 2.3))
    axis = figure.add_axes((0.17, 0.20, 0.80, 0.67))
    many = len(curves) > MOST_IN_LEGEND
    if many:
        axis.set_prop_cycle(
            color=matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(curves)))
        )
    for name, points in curves.items():
        if not points:
            axis.plot([], [])
            continue
        parts = np.array_split(np.array(points, float), min(MOST_POINTS, len(points)))
        x, y = np.array([part.mean(0) for part in parts]).T
        (line,) = axis.plot(x, y, marker="." if len(x) < 40 else "", markersize=4, label=name)
        if many:
            axis.text(x[-1], y[-1], name, color=line.get_color(), fontsize=6)
    if band:
        low, high = axis.get_ylim()
        axis.axhspan(*band, color="tab:green", alpha=0.12, linewidth=0 if band[1] else 3)
        axis.set_ylim(min(low, 0), max(high, min(band[1], 2 * abs(high) + 0.05)))
    if len(curves) > 1 and not many:
        axis.legend()
    axis.set(title=title, xlabel=xlabel)
    return figure


def curves(run: Run) -> dict[str, Figure]:
    """A panel for every value that the run has logged, and one of where the time went."""
    kinds = run.records.keys() - {"warning", "epoch", "time"}
    names = {
        (kind, name)
        for kind in kinds
        for name, value in run.records[kind][-1].items()
        if name not in NO_VALUES and not isinstance(value, list)
    }
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


@matplotlib.rc_context(STYLE)
def svg(figure: Figure) -> str:
    """For the page: no metadata, ink in the page's own colour."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=NO_DATA)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


class Sprite:
    """Thumbnails side by side in one picture, in the order in which they are asked for."""

    def __init__(self):
        self.thumbs, self.labels = [], []

    def __call__(self, e: SimpleNamespace, indices) -> list[int]:
        """The slots of the pictures at these indices of what embed_run gave."""
        self.thumbs += [e.thumbs[i] for i in indices]
        self.labels += [None if e.labels is None else int(e.labels[i]) for i in indices]
        return list(range(len(self.thumbs)))[len(self.thumbs) - len(indices) :]

    def data(self) -> dict:
        """The picture as a data URI, its columns, the side of a thumbnail, and their labels."""
        columns, thumbs = min(COLUMNS, len(self.thumbs)), torch.from_numpy(np.stack(self.thumbs))
        sheet = make_grid(thumbs, columns, padding=0).permute(1, 2, 0)
        jpeg = base64.b64encode(encode_jpeg(sheet.contiguous().numpy(), 80)).decode()
        shape = {"columns": columns, "side": thumbs.shape[-1], "labels": self.labels}
        return {"image": f"data:image/jpeg;base64,{jpeg}", **shape}


def write_page(path: Path, title: str, sections: list[dict], sprite: Sprite) -> None:
    """One file that needs nothing else. sections: as the script in page.html reads them."""
    sprite = sprite.data() if sprite.thumbs else None
    shown = {"title": title, "sections": sections, "sprite": sprite}
    content = json.dumps(finite_or_none(shown, np.ndarray.tolist), separators=(",", ":"))
    content = content.replace("<", "\\u003c")
    text = (Path(__file__).parent / "page.html").read_text("utf-8")
    with told_if_not_written(f"NOT WRITTEN: {path}"):
        write_whole(path, text.replace("{{data}}", content, 1).encode())


def write_figures(figures: dict[str, Figure], folder: Path, ending: str) -> None:
    """Each as a file of its own. ending: png or pdf."""
    with told_if_not_written(f"NOT WRITTEN: {folder}"):
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.{ending}", facecolor="white", dpi=150)
