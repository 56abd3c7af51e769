"""The ways to score a trunk: linear heads, fine-tuning, a saved head, kNN, logistic regression."""

from dataclasses import dataclass, field
from functools import partial

from adco.data.loader import share_of
from adco.data.pictures import Pictures
from adco.probe import logistic
from adco.probe.data import ProbeRun, scoring_loader
from adco.probe.features import Features, extract_features
from adco.probe.knn import knn_accuracies
from adco.probe.linear import HeadTraining
from adco.probe.metrics import Accuracy, best_index
from adco.probe.state import load_head_, pack_probe, save_probe, unpack_probe_
from ops import checkpoint
from ops.distributed import Flags
from ops.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """A score on val, and how it came about."""

    protocol: str
    accuracy: Accuracy
    chosen: dict = field(default_factory=dict)  # what was chosen: lr and epoch, k, or cost
    table: list[dict] = field(default_factory=list)  # scores the choice was made by


def score_linear(run: ProbeRun) -> Outcome:
    """Linear heads by SGD, on a frozen trunk or together with it."""
    config, sets, journal = run.config, run.sets, run.journal
    # From the first epoch, or from a checkpoint of a probe.
    probe = HeadTraining(run)
    if config.resume:
        unpack_probe_(probe, checkpoint.load(config.resume), run.trunk)
        journal.say(f"resumed from {config.resume}, next epoch {probe.epoch}")
    if probe.epoch >= config.epochs:
        raise InputError(
            f"{config.resume!r} has had its {probe.epoch} epochs; raise --epochs to go on, or "
            "score it with -e"
        )

    begin, flags = probe.epoch, Flags(run.world)

    # Train, and score each epoch on the pictures that the choice is made by.
    probe.start_training()
    while probe.epoch < config.epochs:
        probe.train_epoch()
        found = probe.score(sets.held_out or sets.val, "choice")
        is_best = probe.keep_if_best(found)
        head = best_index(found)
        journal.say(f"held out: {found[head]}" if sets.held_out else f" * {found[head]}")
        if run.world.first:
            save_probe(probe, head, is_best)
        flags.exchange(0)  # who waits for the first process's disk says so
    probe.check_trunk_is_unmoved()

    # The score on val, of the best head at its best epoch.
    probe.restore_best()
    best = probe.best
    if run.world.first and best.epoch < begin:
        # Reached before --resume: this folder has no file of it yet.
        probe.epoch = best.epoch + 1
        content = checkpoint.content_of(pack_probe(probe, best.head))
        journal.files.write({journal.folder / "model_best.pth.tar": content})
    accuracy = probe.score(sets.val, "val")[best.head] if sets.held_out else best.accuracy
    return Outcome(
        protocol="linear probe" if probe.frozen else "fine-tuning",
        accuracy=accuracy,
        chosen={"lr": probe.lrs[best.head], "epoch": best.epoch},
        table=probe.peak_table(),
    )


def score_saved_head(run: ProbeRun) -> Outcome:
    """The head that a file holds, as it is."""
    probe = HeadTraining(run)
    if run.trunk and run.trunk.classifier():
        load_head_(probe.model.heads[0], run.trunk, run.sets.train.classes, run.journal.warn)
    else:
        source = run.config.resume or run.config.pretrained
        run.journal.warn(f"{source!r} holds no classifier; a fresh one is scored, at chance")
    return Outcome("linear head as saved", probe.score(run.sets.val, "val")[0])


def score_knn(run: ProbeRun) -> Outcome:
    """The kNN vote on frozen features."""
    config, num_classes = run.config, len(run.sets.train.classes)
    train, held_out, val = features_of(run)
    if max(config.knn_k) > (most := len(run.sets.train)):
        run.journal.warn(
            f"k {max(config.knn_k)} is above the {most} training pictures: all of them vote"
        )

    # Choose k.
    score = partial(knn_accuracies, num_classes=num_classes, tau=config.knn_t, world=run.world)
    found = score([train], held_out or val, ks=config.knn_k)
    best = best_index(found)
    accuracy = found[best]

    # With held-out pictures val is scored once, and they are neighbours too.
    if held_out is not None:
        (accuracy,) = score([train, held_out], val, ks=[config.knn_k[best]])
    table = [{"k": k, **of_k.percent()} for k, of_k in zip(config.knn_k, found, strict=True)]
    return Outcome("kNN", accuracy, {"k": config.knn_k[best]}, table)


def score_logistic(run: ProbeRun) -> Outcome:
    """Logistic regression on frozen features of unit length."""
    world, num_classes = run.world, len(run.sets.train.classes)
    train, held_out, val = features_of(run)

    # Choose the cost of an error against that of large weights.
    cost, found = logistic.choose_cost(train, held_out, num_classes, world)
    table = [{"cost": c, **of_c.percent()} for c, of_c in found]
    if cost in (logistic.COSTS[0], logistic.COSTS[-1]):
        run.journal.warn(f"C {cost:g} is the end of the range tried")

    # Then fit once more, from 0, on everything but val.
    classifier = logistic.zeros(num_classes, train.rows)
    logistic.fit_(classifier, [train, held_out], cost, world)
    accuracy = logistic.accuracy(classifier, val, world)
    return Outcome("logistic regression", accuracy, {"cost": cost}, table)


def features_of(run: ProbeRun) -> list[Features | None]:
    """Directions of the features of this process's share of train, the held-out part and val."""

    def features(pictures: Pictures) -> Features:
        loader = scoring_loader(pictures, run.config, run.world)
        number = len(share_of(pictures, run.world))
        return extract_features(run.encoder, loader, number, check=True)

    return [None if pictures is None else features(pictures) for pictures in run.sets]


PROTOCOLS = {
    "linear": score_linear,
    "finetune": score_linear,
    "evaluate": score_saved_head,
    "knn": score_knn,
    "logistic": score_logistic,
}
