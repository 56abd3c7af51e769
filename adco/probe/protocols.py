"""The ways to score a trunk: linear heads, fine-tuning, a saved head, kNN, logistic regression."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torchvision.models.resnet import ResNet

from adco.probe import logistic
from adco.probe.data import ProbeSets, scoring_loader
from adco.probe.features import Features, extract_features, gather_features
from adco.probe.knn import knn_accuracies
from adco.probe.linear import LinearProbe
from adco.probe.options import RANDOM, ProbeConfig
from adco.probe.state import load_classifier_, save, unpack_
from ops import checkpoint
from ops.distributed import World
from ops.errors import InputError
from ops.journal import Journal
from ops.metrics import Accuracy, lead
from ops.workers import workers_per_process

ON_VAL = (
    "val, as published: the choice has seen the pictures it is scored on; --holdout 0.1 avoids it"
)
HELD_OUT = "a held-out part of train; val is scored once"


class Bench(NamedTuple):
    """What every protocol works on."""

    config: ProbeConfig
    encoder: ResNet
    sets: ProbeSets
    world: World
    device: torch.device
    local_size: int  # processes on this node
    journal: Journal


@dataclass(frozen=True)
class Outcome:
    """A score on val, and how it came about."""

    protocol: str
    accuracy: Accuracy
    chosen: dict = field(default_factory=dict)  # what was chosen: lr and epoch, k, or cost
    chosen_on: str = ""
    table: list[dict] = field(default_factory=list)  # scores the choice was made by


def train_heads(bench: Bench) -> Outcome:
    """Linear heads by SGD, on a frozen trunk or with it."""
    config, sets, journal = bench.config, bench.sets, bench.journal
    probe = LinearProbe(**bench._asdict())
    if config.resume:
        unpack_(probe, checkpoint.load(config.resume), config.resume)
        journal.say(f"resumed from {config.resume}, next epoch {probe.epoch}")
    if probe.epoch >= config.epochs:
        raise InputError(
            f"{config.resume!r} has had its {probe.epoch} epochs; raise --epochs to go on, or "
            "score it with -e"
        )
    probe.start_training()
    while probe.epoch < config.epochs:
        probe.train_epoch()
        found = probe.score(sets.held_out or sets.val, "choice")
        best = probe.keep_if_best(found)
        head = lead(found)
        journal.say(f"held out: {found[head]}" if sets.held_out else f" * {found[head]}")
        if bench.world.first:
            save(probe, config, journal.folder, head, best)
    probe.check_trunk_is_unmoved()
    probe.restore_best()
    best = probe.best
    accuracy = probe.score(sets.val, "val")[best.head] if sets.held_out else best.accuracy
    table = [
        {"lr": lr, "acc1": peak.acc1, "acc5": peak.acc5, "epoch": epoch}
        for lr, (peak, epoch) in zip(probe.lrs, probe.peaks, strict=True)
    ]
    if len(table) > 1:
        for row in table:
            journal.say("lr {lr:<8g} best Acc@1 {acc1:.3f} in epoch {epoch}".format(**row))
    return Outcome(
        "linear probe" if probe.frozen else "fine-tuning",
        accuracy,
        {"lr": probe.lrs[best.head], "epoch": best.epoch},
        HELD_OUT if sets.held_out else ON_VAL,
        table,
    )


def score_saved_head(bench: Bench) -> Outcome:
    """The head that a file holds, as it is."""
    probe = LinearProbe(**bench._asdict())
    source = bench.config.resume or bench.config.pretrained
    if source == RANDOM or not load_classifier_(probe.model.heads[0], source):
        bench.journal.warn(
            f"{source!r} holds no classifier; what is scored is a fresh one, at chance"
        )
    return Outcome("linear head as saved", probe.score(bench.sets.val, "val")[0])


def vote(bench: Bench) -> Outcome:
    """kNN on frozen features."""
    config, sets, world = bench.config, bench.sets, bench.world
    num_classes = len(sets.train.classes)
    train, held_out, val = features_of(bench)
    train = gather_features(train, world)
    found = knn_accuracies(train, held_out or val, num_classes, config.knn_k, world)
    best = lead(found)
    accuracy = found[best]
    if held_out is not None:
        everything = joined(train, gather_features(held_out, world))
        (accuracy,) = knn_accuracies(everything, val, num_classes, [config.knn_k[best]], world)
    table = [
        {"k": k, "acc1": of_k.acc1, "acc5": of_k.acc5}
        for k, of_k in zip(config.knn_k, found, strict=True)
    ]
    for row in table:
        bench.journal.say("k {k:<4d} Acc@1 {acc1:.3f} Acc@5 {acc5:.3f}".format(**row))
    chosen_on = ON_VAL if held_out is None else HELD_OUT
    return Outcome("kNN", accuracy, {"k": config.knn_k[best]}, chosen_on, table)


def regress(bench: Bench) -> Outcome:
    """Logistic regression on frozen features of unit length."""
    world, num_classes = bench.world, len(bench.sets.train.classes)
    train, held_out, val = features_of(bench)
    cost, found = logistic.choose_cost(train, held_out, num_classes, world)
    table = [{"cost": c, "acc1": of_c.acc1, "acc5": of_c.acc5} for c, of_c in found]
    for row in table:
        bench.journal.say("C {cost:<8g} held out: Acc@1 {acc1:.3f}".format(**row))
    if cost in (logistic.COSTS[0], logistic.COSTS[-1]):
        bench.journal.warn(f"C {cost:g} is the end of the range tried")
    classifier = logistic.zeros(num_classes, train.rows)
    logistic.fit_(classifier, joined(train, held_out), cost, world)
    accuracy = logistic.accuracy(classifier, val, world)
    return Outcome("logistic regression", accuracy, {"cost": cost}, HELD_OUT, table)


def features_of(bench: Bench) -> list[Features | None]:
    """Unit-length features of this process's share of train, held-out part and val."""
    config, world = bench.config, bench.world
    workers = workers_per_process(config.workers, bench.local_size)
    size = max(1, config.batch_size // bench.local_size)
    return [
        part
        and extract_features(
            bench.encoder, scoring_loader(part, config, size, workers, world), bench.device
        )
        for part in (bench.sets.train, bench.sets.held_out, bench.sets.val)
    ]


def joined(one: Features, other: Features) -> Features:
    return Features(torch.cat([one.rows, other.rows]), torch.cat([one.labels, other.labels]))


PROTOCOLS = {
    "linear": train_heads,
    "finetune": train_heads,
    "evaluate": score_saved_head,
    "knn": vote,
    "logistic": regress,
}
