"""A run of `VOC_CLF/main.py`: read the encoder and the pictures, score, report."""

from dataclasses import asdict
from pathlib import Path

from adco.data.datasets import introduction
from adco.data.decoder import decoding_of
from adco.data.identity import identity
from adco.encoder import check_sides, read_trunk
from ops.journal import Journal
from ops.launch import check_gpu, device_kind, own_device
from ops.run_folder import new_run_folder
from VOC_CLF.dataset import load_voc
from VOC_CLF.linear import linear_scores
from VOC_CLF.options import VocConfig
from VOC_CLF.report import curves_png, results_json, say_table, scores_csv
from VOC_CLF.scores import voc_score
from VOC_CLF.svm import svm_scores

PROTOCOLS = {"linear": linear_scores, "svm": svm_scores}


def run(config: VocConfig) -> int:
    """Train, score and write as configured. Returns the exit code."""
    # The encoder and the pictures, before a run folder is made.
    kind = device_kind(config.device, config.choose)
    check_gpu(config.gpu, kind)
    device = own_device(kind, 0, config)
    trunk = read_trunk(config.pretrained, arch=config.arch)
    model = trunk.build()
    check_sides(model, trunk.channels, [config.picture_size()])
    voc = load_voc(config.data, decoding_of(config))
    split = voc.test or voc.val  # the one that is scored
    pictures = {part.name: part.pictures for part in voc if part}
    data = identity(pictures)
    level = "" if config.run_num is None else f"run_{config.run_num}"
    folder = new_run_folder(Path(config.save_path) / config.log_path / "VOC2007" / level)
    journal = Journal(folder)
    try:
        journal.write_config(asdict(config), data)
        trunk.tell_left_out(journal.say)
        for line in introduction(pictures):
            journal.say(line)
        journal.say(
            f"{config.pretrained} on VOC2007, {split.name} to score, protocol {config.protocol}, "
            f"{device.type}"
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
        say_table(journal, split, result)
        left = {
            "scores.csv": scores_csv(split, outputs),
            "precision_recall.png": curves_png(split, outputs, result),
            "results.json": results_json(config, trunk, data, split, result),
        }
        journal.files.write({folder / name: content for name, content in left.items()})
        journal.files.check()
        journal.say(f"finished: {folder}")
    finally:
        journal.close()
    return 0
