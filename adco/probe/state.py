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
from adco.probe.linear import Best, HeadTraining
from adco.probe.metrics import Accuracy
from adco.probe.options import RANDOM, ProbeConfig
from ops import checkpoint
from ops.errors import InputError, shown, some
from ops.options import differences

KEPT_EPOCHS = 20  # the last epochs whose checkpoints stay


def read_encoder(config: ProbeConfig) -> tuple[Encoder, ProbeConfig, TrunkWeights | None]:
    """The trunk to score, with a fresh `fc`, the options with its arch, stem and channels, and what
    its file holds; None for random weights.
    """
    # The baseline has no file that could name its architecture.
    if config.pretrained == RANDOM and not config.resume:
        kind = dict(arch=config.arch or "resnet50", stem=config.stem or "imagenet")
        kind["channels"] = config.channels or 3
        torch.manual_seed(config.seed)
        trunk, found = build_trunk(**kind), None
    else:
        found = read_trunk(config.resume or config.pretrained, arch=config.arch)
        kind = {n: getattr(config, n) or getattr(found, n) for n in ("arch", "stem", "channels")}
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
    ours = [normal(name) for name in classes]
    theirs = ours
    if trunk.classes is None:
        warn(f"{source} does not name its classes: the order of the class folders here is trusted")
    else:
        theirs = [normal(name) for name in trunk.classes]
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


def pack_probe(probe: HeadTraining, head: int) -> dict:
    """Everything a probe needs to go on. `head` is the one that becomes `fc`."""
    best = probe.best
    return {
        "epoch": probe.epoch,
        "arch": probe.config.arch,
        "state_dict": checkpoint.with_module(probe.network(head)),
        "best_acc1": best.accuracy.acc1,
        "optimizer": probe.optimizer.state_dict(),
        "config": json.dumps(asdict(probe.config)),
        "data": probe.data,
        "classes": list(probe.sets.train.classes),
        "heads": probe.model.heads.state_dict(),
        "peaks": [[*accuracy, epoch] for accuracy, epoch in probe.peaks],
        "best": {**best._asdict(), "accuracy": list(best.accuracy)},
    }


def check_same_run(probe: HeadTraining, state: dict, source: str) -> None:
    """Raise InputError where a probe has other options or data than the one it goes on from.

    Files of the published program say nothing of either.
    """
    # A probe may take longer. An option that is newer than the file is left out.
    theirs, ours = own_config(state), probe.config.changes_numbers()
    if "epochs" in theirs:
        theirs["epochs"] = max(theirs["epochs"], probe.config.epochs)
    ours.pop("start_epoch")
    other_data = difference(state.get("data"), probe.data)
    if found := list(filter(None, [*differences(theirs, ours), other_data])):
        raise InputError(
            f"{source!r} cannot go on here: {', '.join(found)}; give the same options and data, or "
            "start anew with --pretrained"
        )


def unpack_probe_(probe: HeadTraining, state: dict, trunk: TrunkWeights) -> None:
    """Let a probe go on from a checkpoint of ours, or of the published program (one head).

    trunk: what the same file holds. Raises InputError where options or data are others.
    """
    source = trunk.source
    checkpoint.check_goes_on(state, source, "a probe's checkpoint")
    check_same_run(probe, state, source)

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
        best = Best(**state["best"])
        probe.best = best._replace(accuracy=Accuracy(*best.accuracy))
        probe.peaks = [(Accuracy(*row[:3]), row[3]) for row in state["peaks"]]
    elif probe.sets.held_out is None and 0 <= best_acc1 <= 100:
        keep_published_best(probe, best_acc1)


def keep_published_best(probe: HeadTraining, percent: float) -> None:
    """Take the accuracy of a published file for the score to beat, with the file's weights."""
    # It was a mean over unequal batches: a whole number of pictures is near.
    found = probe.score(probe.sets.val, "choice")[0]
    right1 = round(percent / 100 * found.total)
    probe.keep_if_best([found._replace(right1=right1, right5=max(right1, found.right5))])


def save_probe(probe: HeadTraining, head: int, is_best: bool) -> None:
    """Write the checkpoints due after an epoch. is_best: no epoch before it scored as high."""
    content = checkpoint.content_of(pack_probe(probe, head))
    # probe.epoch is the next one already.
    names = ["checkpoint.pth.tar"]
    if is_best:
        names.append("model_best.pth.tar")
    if probe.epoch > probe.config.epochs - KEPT_EPOCHS:
        names.append(f"model_{probe.epoch - 1}.pth.tar")
    folder = probe.journal.folder
    probe.journal.files.write({folder / name: content for name in names})
