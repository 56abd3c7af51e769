"""A probe's files: the trunk and the head it starts from, and its own checkpoints.

Keys shared with the published program: epoch (the next one), arch, state_dict (names module.*, the
best head as fc), best_acc1, optimizer. Ours beside them: config (JSON), data, classes, heads,
peaks, best.
"""

import json
import operator
from dataclasses import asdict, replace

import torch
from torch import nn

from adco.data.identity import difference, normal
from adco.encoder import Encoder, TrunkWeights, build_trunk, check_sides, own_config, read_trunk
from adco.probe.linear import HeadTraining
from adco.probe.metrics import Accuracy
from adco.probe.options import RANDOM, ProbeConfig
from ops import checkpoint
from ops.errors import InputError, shown, some
from ops.options import differences


def read_encoder(config: ProbeConfig) -> tuple[Encoder, ProbeConfig, TrunkWeights | None]:
    """The trunk to score, with a fresh `fc`, the options with its arch, stem and channels, and what
    its file holds; None for random weights.
    """
    # The baseline has no file that could name its architecture.
    file = config.resume or config.pretrained
    found = None if file == RANDOM else read_trunk(file, arch=config.arch)
    usual = dict(arch="resnet50", stem="imagenet", channels=3)
    kind = {n: getattr(config, n) or getattr(found, n, usual[n]) for n in usual}
    if found is None:
        torch.manual_seed(config.seed)
        trunk = build_trunk(**kind)
    else:
        found = replace(found, **kind)
        trunk = found.build()
    check_sides(trunk, kind["channels"], [config.image_size])
    return trunk, replace(config, **kind), found


def load_head_(head: nn.Linear, trunk: TrunkWeights, classes: list[str], warn) -> None:
    """Fill a head with the classifier of a trunk's file, whose rows go to the classes they name.

    classes: of this data set. warn: called where the file names none. Raises InputError where the
    file's classes are others.
    """
    source = f"the classifier in {trunk.source!r}"
    if trunk.classes is None:
        warn(f"{source} does not name its classes: the order of the class folders here is trusted")
    ours, theirs = ([*map(normal, names)] for names in (classes, trunk.classes or classes))
    there, here = (sorted(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs)))
    if there or here:
        raise InputError(
            f"{source} is one of other classes: only there {shown(some(there, 3), 99)}, only "
            f"here {shown(some(here, 3), 99)}; give the data that it fits"
        )
    source += f", for the {head.out_features} classes of this data set,"
    checkpoint.load_strictly(head, trunk.classifier(), source)
    rows = [theirs.index(name) for name in ours]
    for parameter in head.parameters():
        parameter.data = parameter.data[rows]


def save_probe(probe: HeadTraining, head: int, *names: str) -> None:
    """Write everything a probe needs to go on, under each name. head: which becomes `fc`."""
    fc = {f"fc.{name}": value for name, value in probe.model.heads[head].state_dict().items()}
    accuracy, epoch = probe.peaks[probe.best]
    best = {"accuracy": [*accuracy], "epoch": epoch, "head": probe.best}
    state = {
        "epoch": probe.epoch,
        "arch": probe.config.arch,
        "state_dict": checkpoint.with_module(probe.trunk_weights() | fc),
        "best_acc1": accuracy.acc1,
        "optimizer": probe.optimizer.state_dict(),
        "config": json.dumps(asdict(probe.config)),
        "data": probe.run.data,
        "classes": list(probe.sets.train.classes),
        "heads": probe.model.heads.state_dict(),
        "peaks": [[*accuracy, epoch] for accuracy, epoch in probe.peaks],
        "best": {**best, "weights": probe.best_weights},
    }
    content = checkpoint.content_of(state)
    probe.journal.files.write({probe.journal.folder / name: content for name in names})


def unpack_probe_(probe: HeadTraining, state: dict, trunk: TrunkWeights) -> None:
    """Let a probe go on from a checkpoint of ours, or of the published program (one head).

    trunk: what the same file holds. Raises InputError where options or data are others.
    """
    source = trunk.source
    checkpoint.check_goes_on(state, source, "a probe's checkpoint")
    # Files of the published program say nothing of options or data. A probe may take longer. An
    # option that is newer than the file is left out.
    theirs, ours = own_config(state), probe.config.changes_numbers()
    if "epochs" in theirs:
        theirs["epochs"] = max(theirs["epochs"], probe.config.epochs)
    ours.pop("start_epoch")
    other_data = difference(state.get("data"), probe.run.data)
    if found := list(filter(None, [*differences(theirs, ours), other_data])):
        fault = f"{source!r} cannot go on here: {', '.join(found)}; give the same options and data"
        raise InputError(f"{fault}, or start anew with --pretrained")

    # The heads, by their number. Published checkpoints have one, as fc.
    fc = {f"0.{name}": value for name, value in trunk.classifier().items()}
    where = f"the heads in {source} (--lr_sweep, --dataset)"
    checkpoint.load_strictly(probe.model.heads, state.get("heads", fc), where)

    # Momentum and epoch. Rates and decay are those of this run.
    checkpoint.load_optimizer_(probe.optimizer, state["optimizer"], source)
    try:
        probe.epoch = operator.index(state["epoch"])
        best_acc1 = float(state.get("best_acc1", "nan"))  # a tensor in some files
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"epoch or best_acc1 in {source} is no number: {shown(error)}") from error

    # The scores so far.
    if "best" in state:
        probe.best, probe.best_weights = state["best"]["head"], state["best"]["weights"]
        probe.peaks = [(Accuracy(*row[:3]), row[3]) for row in state["peaks"]]
    elif probe.sets.held_out is None and 0 <= best_acc1 <= 100:
        # The score to beat, with the file's weights. It was a mean over unequal batches: a whole
        # number of pictures is near.
        found = probe.score(probe.sets.val, "choice")[0]
        right1 = round(best_acc1 / 100 * found.total)
        probe.keep_if_best([found._replace(right1=right1, right5=max(right1, found.right5))])
