"""A run: encoder and pictures in, score out."""

from dataclasses import asdict
from pathlib import Path

import torch

from adco.encoder import read_trunk
from ops.journal import Journal, new_run_folder
from ops.launch import device_kind
from VOC_CLF.dataset import load_voc
from VOC_CLF.linear import linear_scores
from VOC_CLF.options import VocConfig
from VOC_CLF.report import say_table, write_curves, write_results, write_scores
from VOC_CLF.scores import score
from VOC_CLF.svm import svm_scores

PROTOCOLS = {"linear": linear_scores, "svm": svm_scores}


def run(config: VocConfig) -> int:
    """Train, score and write as configured. Returns the exit code."""
    device = torch.device(device_kind(config.device))
    model = read_trunk(config.pretrained, config.encoder, config.arch).build()
    voc = load_voc(config.data)
    scored = voc.test or voc.val
    folder = new_run_folder(Path(config.save_path) / config.log_path / "VOC2007")
    journal = Journal(folder)
    try:
        journal.write_config(asdict(config))
        journal.say(
            f"{config.pretrained} on VOC2007 ({len(voc.train.ids)} train, {len(voc.val.ids)} val, "
            f"{len(scored.ids)} {scored.name} to score), protocol {config.protocol}, {device.type}"
        )
        if voc.test is None:
            journal.say(
                "no ImageSets/Main/test.txt: scored on val, which is no result to compare with "
                "those on test" + " (val also chooses the epoch)" * (config.protocol == "linear")
            )
        scores = PROTOCOLS[config.protocol](config, model, voc, scored, device, journal)
        result = score(scores, scored.labels)
        write_scores(folder / "scores.csv", scored, scores)
        write_curves(folder / "precision_recall.png", scored, scores, result)
        write_results(folder / "results.json", config, scored, result)
        say_table(journal, scored, result)
        journal.say(f"finished: {folder}")
    finally:
        journal.close()
    return 0
