"""Pictures of a run: its curves, and test pictures beside their nearest neighbours.

python3 -m adco.report RUN     RUN: a run folder, or one above it (then the newest run)
"""

import json
import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; needs no screen
import matplotlib.pyplot as plt
import numpy as np

from adco.data.datasets import Splits, hold_out, load_splits
from adco.data.decoder import Decoding
from adco.data.list_files import listed
from adco.data.loader import CheckViews, check_loader
from adco.encoder import read_trunk
from adco.pretrain.monitor import SCORES
from adco.probe.features import extract_features, unit_rows
from ops.arguments import argument, option, parse
from ops.checkpoint import LAST
from ops.distributed import World
from ops.errors import InputError, reported, steady_streams

NUM_QUERIES, NUM_NEIGHBOURS = 10, 8


@dataclass(frozen=True)
class ReportConfig:
    """Draw a pre-training run: curves.png, neighbours.png, and a table of what it learned."""

    run: str = argument("run folder, or a folder above it: then the newest run below")
    data: str = option("", "folder of the pictures, where it is not the one the run was given")


def newest_run(folder: Path) -> Path:
    """The pre-training run below a folder whose metrics were written last."""
    configs = folder.rglob("config.json")
    runs = [path.parent for path in configs if '"memory_lr"' in path.read_text()]
    if not runs:
        raise InputError(
            f"no pre-training run in {str(folder)!r}; expected its folder, or one above"
        )
    return max(runs, key=lambda run: (run / "metrics.jsonl").stat().st_mtime)


def read_metrics(run: Path) -> dict[str, list[dict]]:
    """Records of a run by their kind: startup, train, epoch, knn or rank."""
    records: dict[str, list[dict]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        records.setdefault(record["kind"], []).append(record)
    return records


def draw_curves(records: dict[str, list[dict]], path: Path) -> None:
    """Loss, mass and kNN accuracy, or effective rank, over the steps."""
    score = "rank" if "rank" in records else "knn"
    panels = (
        ("train", "loss", "encoder's loss, nats"),
        ("train", "mass", "softmax mass on the keys"),
        (score, *SCORES[score][:2]),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained")
    for axis, (kind, name, label) in zip(axes, panels, strict=True):
        # A run without scores has an empty panel.
        found = records.get(kind, [])
        style = "-" if kind == "train" else "o-"
        axis.plot([r["step"] for r in found], [r[name] for r in found], style, markersize=3)
        axis.set(xlabel="step", title=label)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_neighbours(splits: Splits, checkpoint: Path, size: int, whole: bool, path: Path) -> None:
    """Rows of a val picture and its nearest training pictures, by cosine of their features.

    A frame is green where the class is the same, red where it is not.
    """
    # Features of all labelled pictures, on the CPU.
    encoder, features = read_trunk(str(checkpoint)).build(), []
    for part in (splits.labelled, splits.val):
        views = CheckViews(part, size, whole=whole)
        loader = check_loader(views, batch_size=256, workers=0, world=World())
        features.append(unit_rows(extract_features(encoder, loader, len(part)).rows))
    train, val = features

    # The first val picture of each of the first classes, and what is nearest to it.
    classes = np.unique(splits.val.labels)[:NUM_QUERIES]
    queries = [int(np.flatnonzero(splits.val.labels == number)[0]) for number in classes]
    nearest = (val[queries] @ train.T).topk(NUM_NEIGHBOURS).indices.tolist()

    # A row is the query, then its neighbours from the nearest on.
    shape = (len(queries), 1 + NUM_NEIGHBOURS)
    figure, axes = plt.subplots(
        *shape, figsize=(shape[1], shape[0]), layout="constrained", squeeze=False
    )
    for row, query, found in zip(axes, queries, nearest, strict=True):
        row[0].imshow(shown(splits.val.read(query)), cmap="gray")
        for axis, index in zip(row[1:], found, strict=True):
            axis.imshow(shown(splits.labelled.read(index)), cmap="gray")
            same = splits.labelled.labels[index] == splits.val.labels[query]
            for spine in axis.spines.values():
                spine.set(color="tab:green" if same else "tab:red", linewidth=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle("test picture, and its nearest training pictures")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def shown(pixels: np.ndarray) -> np.ndarray:
    """The first three channels of [H, W, C] as RGB; where there are fewer, the first as gray."""
    return pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]


def table(run: Path, records: dict[str, list[dict]], init: str = "") -> str:
    """What the run learned: lines of a name and a value. init: the file that it began with."""
    seconds = sum(record["seconds"] for record in records.get("epoch", []))
    rows = [("epochs", f"{len(records.get('epoch', []))} in {seconds:.0f} s")]
    for kind, (name, title, unit) in SCORES.items():
        scores = [record for record in records.get(kind, []) if record[name] is not None]
        # The score before the first epoch; a run that began from a checkpoint has none.
        if scores and scores[0]["epoch"] == 0:
            begun = "weights of --init" if init else "random weights"
            rows.append((f"{title}, {begun}", f"{scores[0][name]:.1f}{unit}"))
        if scores:
            rows.append((f"{title}, pre-trained", f"{scores[-1][name]:.1f}{unit}"))
    rows += [("checkpoint", str(run / LAST)), ("log folder", str(run))]
    rows += [("picture", str(path)) for path in sorted(run.glob("*.png"))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def report_run(config: ReportConfig) -> None:
    """Draw the curves and, where there are labels, the neighbours; print the table."""
    run = newest_run(Path(config.run))
    records = read_metrics(run)
    options = json.loads((run / "config.json").read_text())["config"]
    draw_curves(records, run / "curves.png")
    checkpoint = run / LAST
    # The data set is the one that the run was given.
    how = {name: options[name] for name in Decoding._fields if name in options}
    decoding = Decoding(**{"max_megapixels": inf, **how})
    splits = load_splits(options["dataset"], config.data or options["data"], decoding=decoding)
    splits = listed(splits, options.get("train_list", ""))
    if splits.val is None and options.get("val_split"):
        splits = hold_out(splits, options["val_split"], options["seed"])
    if splits.labelled is not None and checkpoint.is_file():
        size, whole = options["image_size"], not options.get("eval_crop", 1)
        draw_neighbours(splits, checkpoint, size, whole, run / "neighbours.png")
    print(table(run, records, options.get("init", "")))


def main(argv=None, program: str = "adco.report") -> int:
    with reported(program):
        report_run(parse(ReportConfig, argv))
    return 0


if __name__ == "__main__":
    steady_streams()
    sys.exit(main())
