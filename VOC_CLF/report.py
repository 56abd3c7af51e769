"""What a run leaves behind: the table, scores.csv, precision_recall.png, results.json."""

import csv
import io

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from adco.data.pictures import FolderPictures
from adco.encoder import TrunkWeights
from ops.files import json_bytes
from ops.journal import Journal
from VOC_CLF.dataset import CLASSES, IGNORED
from VOC_CLF.scores import VocScore


def say_table(journal: Journal, scored: str, pictures: FolderPictures, result: VocScore) -> None:
    """AP of each class in percent, then the three means; the first mean is the result."""
    positives = (pictures.labels == 1).sum(axis=0)
    journal.say(f"{'class':12} {'pictures':>8} {'AP':>7} {'11-point':>9}")
    for row in zip(CLASSES, positives, 100 * result.area, 100 * result.eleven_point, strict=True):
        name, number, area, eleven = row
        journal.say(f"{name:12} {number:8} {area:7.2f} {eleven:9.2f}")
    if np.isnan(result.area).any():
        journal.say(f"nan: no picture in {scored} to find; left out of the means")
    # The second mean is VOC2007's own measure, the third is that of the published program.
    journal.say(
        f" * {scored}: mAP per class {100 * result.mean_ap:.2f}, "
        f"11-point {100 * result.mean_ap_11_point:.2f}; "
        f"AP per image {100 * result.per_image:.2f} (the published program's number)"
    )


def scores_csv(pictures: FolderPictures, scores: np.ndarray) -> bytes:
    """One row per picture, one column per class."""
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(["image", *CLASSES])
    ids = [name.removesuffix(".jpg") for name in pictures.file_names()]
    table.writerows([name, *map(float, row)] for name, row in zip(ids, scores, strict=True))
    return file.getvalue().encode()


def curves_png(
    scored: str, pictures: FolderPictures, scores: np.ndarray, result: VocScore
) -> bytes:
    """Precision over recall, one panel per class."""
    figure = Figure(figsize=(12, 10), layout="constrained")
    for number, (axes, name) in enumerate(zip(figure.subplots(4, 5).flat, CLASSES, strict=True)):
        # A class without a picture to find has an empty panel.
        labels = pictures.labels[:, number]
        known = labels != IGNORED
        if (labels == 1).any():
            precision, recall, _ = precision_recall_curve(labels[known], scores[known, number])
            axes.step(recall, precision, where="post")
        axes.set(title=f"{name}  {100 * result.area[number]:.1f}", xlim=(0, 1), ylim=(0, 1.02))
    figure.supxlabel("recall")
    figure.supylabel("precision")
    figure.suptitle(f"VOC2007 {scored}: mAP {100 * result.mean_ap:.2f}")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def results_json(journal: Journal, trunk: TrunkWeights, scored: str, result: VocScore) -> bytes:
    """Numbers in percent, with all that they depend on. null: no picture of the class to find."""
    results = {
        "dataset": "VOC2007",
        "protocol": journal.about["config"]["protocol"],
        "scored_on": scored,
        "map": 100 * result.mean_ap,
        "map_11_point": 100 * result.mean_ap_11_point,
        "ap_per_image": 100 * result.per_image,
        "ap": dict(zip(CLASSES, (100 * result.area).tolist(), strict=True)),
        "ap_11_point": dict(zip(CLASSES, (100 * result.eleven_point).tolist(), strict=True)),
        "num_pictures": journal.about["data"][scored]["pictures"],
        "checkpoint": trunk.source,
        "checkpoint_sha256": trunk.sha256,
        **journal.about,
    }
    return json_bytes(results)
