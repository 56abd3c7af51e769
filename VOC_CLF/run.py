"""A run of `VOC_CLF/main.py`: read the encoder and the pictures, score, and report the result.

It leaves a table on the console, scores.csv, precision_recall.png and results.json.
"""

import csv
import io
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from adco.data.datasets import introduction
from adco.data.decoder import decoding_of
from adco.data.identity import identity
from adco.data.pictures import FolderPictures
from adco.encoder import TrunkWeights, check_sides, read_trunk
from ops.files import json_bytes
from ops.journal import Journal
from ops.launch import device_kind, own_device
from ops.run_folder import new_run_folder
from VOC_CLF.dataset import CLASSES, IGNORED, load_voc
from VOC_CLF.linear import linear_scores
from VOC_CLF.options import VocConfig
from VOC_CLF.scores import VocScore, voc_score
from VOC_CLF.svm import svm_scores

PROTOCOLS = {"linear": linear_scores, "svm": svm_scores}


def run(config: VocConfig) -> int:
    """Train, score and write as configured. Returns the exit code."""
    # The encoder and the pictures, before a run folder is made.
    device = own_device(device_kind(config.device, config.choose), 0, config)
    trunk = read_trunk(config.pretrained, arch=config.arch)
    model = replace(trunk, channels=config.channels).build()
    check_sides(model, config.channels, [config.picture_size()])
    voc = load_voc(config.data, decoding_of(config))
    scored = "test" if "test" in voc else "val"
    level = "" if config.run_num is None else f"run_{config.run_num}"
    folder = new_run_folder(Path(config.save_path) / config.log_path / "VOC2007" / level)
    with closing(Journal(folder, asdict(config), identity(voc))) as journal:
        trunk.tell_left_out(journal.say)
        journal.say("\n".join(introduction(voc)))
        how = f"{scored} to score, protocol {config.protocol}, {device.type}"
        journal.say(f"{config.pretrained} on VOC2007, {how}")
        if scored == "val":
            why = "no ImageSets/Main/test.txt: scored on val"
            journal.say(f"{why}; do not compare this result with those on test")
            if config.protocol == "linear":
                journal.say("val also chooses the epoch")

        # Outputs [n, 20] rank the pictures for each class.
        outputs = PROTOCOLS[config.protocol](config, model, voc, scored, device, journal)
        pictures = voc[scored]
        result = voc_score(outputs, pictures.labels)
        say_table(journal, scored, pictures.labels, result)
        left = {
            "scores.csv": scores_csv(pictures, outputs),
            "precision_recall.png": curves_png(scored, pictures.labels, outputs, result),
            "results.json": results_json(journal, trunk, scored, result),
        }
        journal.files.write({folder / name: content for name, content in left.items()})
        journal.files.check()
        journal.say(f"finished: {folder}")
    return 0


# ---- what a run leaves


def say_table(journal: Journal, scored: str, labels: np.ndarray, result: VocScore) -> None:
    """AP of each class in percent, then the three means; the first mean is the result."""
    positives = (labels == 1).sum(axis=0)
    journal.say(f"{'class':12} {'pictures':>8} {'AP':>7} {'11-point':>9}")
    for row in zip(CLASSES, positives, 100 * result.area, 100 * result.eleven_point, strict=True):
        journal.say("{:12} {:8} {:7.2f} {:9.2f}".format(*row))
    if np.isnan(result.area).any():
        journal.say(f"nan: no picture in {scored} to find; left out of the means")
    # The second mean is VOC2007's own measure, the third is that of the published program.
    numbers = 100 * np.array([result.mean_ap, result.mean_ap_11_point, result.per_image])
    means = "mAP per class {:.2f}, 11-point {:.2f}; AP per image {:.2f}".format(*numbers)
    journal.say(f" * {scored}: {means} (the published program's number)")


def scores_csv(pictures: FolderPictures, scores: np.ndarray) -> bytes:
    """One row per picture, one column per class."""
    file, ids = io.StringIO(), [name.removesuffix(".jpg") for name in pictures.file_names()]
    rows = [[name, *map(float, row)] for name, row in zip(ids, scores, strict=True)]
    csv.writer(file).writerows([["image", *CLASSES], *rows])
    return file.getvalue().encode()


def curves_png(scored: str, labels: np.ndarray, scores: np.ndarray, result: VocScore) -> bytes:
    """Precision over recall, one panel per class."""
    figure = Figure(figsize=(12, 10), layout="constrained")
    for number, (axes, name) in enumerate(zip(figure.subplots(4, 5).flat, CLASSES, strict=True)):
        # A class without a picture to find has an empty panel.
        of_class = labels[:, number]
        known = of_class != IGNORED
        if (of_class == 1).any():
            precision, recall, _ = precision_recall_curve(of_class[known], scores[known, number])
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
