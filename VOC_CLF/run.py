"""A run of `VOC_CLF/main.py`: read the encoder and the pictures, score, report."""

from dataclasses import asdict
from pathlib import Path

import torch

from adco.encoder import read_trunk
from ops.journal import Journal
from ops.launch import device_kind
from ops.run_folder import new_run_folder
from VOC_CLF.dataset import load_voc
from VOC_CLF.linear import linear_scores
from VOC_CLF.options import VocConfig
from VOC_CLF.report import say_table, write_curves, write_results, write_scores
from VOC_CLF.scores import voc_score
from VOC_CLF.svm import svm_scores

PROTOCOLS = {"linear": linear_scores, "svm": svm_scores}


def run(config: VocConfig) -> int:
    """Train, score and write as configured. Returns the exit code."""
    # The encoder and the pictures, before a run folder is made.
    device = torch.device(device_kind(config.device))
    model = read_trunk(config.pretrained, arch=config.arch).build()
    voc = load_voc(config.data)
    split = voc.test or voc.val  # the one that is scored
    folder = new_run_folder(Path(config.save_path) / "train_log" / "VOC2007")
    journal = Journal(folder)
    try:
        journal.write_config(asdict(config))
        journal.say(
            f"{config.pretrained} on VOC2007 ({len(voc.train.ids)} train, {len(voc.val.ids)} val, "
            f"{len(split.ids)} {split.name} to score), protocol {config.protocol}, {device.type}"
        )
        if voc.test is None:
            journal.say(
                "no ImageSets/Main/test.txt: scored on val; do not compare this result with those "
                "on test"
            )
            if config.protocol == "linear":
                journal.say("val also chooses the epoch")

        # Outputs [n, 20] rank the pictures for each class.
        outputs = PROTOCOLS[config.protocol](config, model, voc, split, device, journal)
        result = voc_score(outputs, split.labels)
        write_scores(folder / "scores.csv", split, outputs)
        write_curves(folder / "precision_recall.png", split, outputs, result)
        write_results(folder / "results.json", config, split, result)
        say_table(journal, split, result)
        journal.say(f"finished: {folder}")
    finally:
        journal.close()
    return 0
