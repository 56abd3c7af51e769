"""A run of `lincls.py`: read the trunk and the pictures, score them, report the result.

The ways to score a trunk: linear heads, fine-tuning, a saved head, kNN, logistic regression.
"""

from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial

import torch

from adco.data.datasets import introduction
from adco.data.identity import check_same_everywhere, identity
from adco.encoder import note_other_views
from adco.probe import logistic
from adco.probe.data import ProbeRun, features_of_share, load_probe_sets
from adco.probe.knn import knn_accuracies
from adco.probe.linear import HeadTraining
from adco.probe.metrics import Accuracy, best_index
from adco.probe.options import RANDOM, ProbeConfig
from adco.probe.state import load_head_, read_encoder, save_probe, unpack_probe_
from ops import checkpoint
from ops.distributed import Flags, World
from ops.errors import InputError
from ops.files import json_bytes
from ops.journal import Journal
from ops.run_folder import new_run_folder

# On which pictures the best learning rate, epoch, k or cost was chosen.
ON_VAL = (
    "val, as published: the choice has seen the pictures it is scored on; --holdout 0.1 avoids it"
)
HELD_OUT = "a held-out part of train; val is scored once"
LOGISTIC_HOLDOUT = 0.1  # --head logistic never chooses on val
LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
KEPT_EPOCHS = 20  # the last epochs whose checkpoints stay


@dataclass(frozen=True)
class Outcome:
    """A score on val, and how it came about."""

    protocol: str
    accuracy: Accuracy
    chosen: dict = field(default_factory=dict)  # what was chosen: lr and epoch, k, or cost
    table: list[dict] = field(default_factory=list)  # scores the choice was made by


def run(config: ProbeConfig, world: World, device: torch.device) -> int:
    """Score a trunk as configured, as one process of `world`. Returns the exit code."""
    # The trunk, and the pictures. A saved head is scored without a choice.
    encoder, config, trunk = read_encoder(config.with_global_batch(world.size, world.local_size))
    holdout = config.holdout or (LOGISTIC_HOLDOUT if config.head == "logistic" else 0)
    sets = load_probe_sets(config, 0 if config.evaluate else holdout, world)
    data = identity(sets._asdict())
    check_same_everywhere(data, Flags(world))
    if min(len(part) for part in (sets.train, sets.held_out, sets.val) if part) < world.size:
        fault = f"fewer pictures than processes: train {len(sets.train)}, val {len(sets.val)}"
        raise InputError(f"{fault}, {world.size} processes; lower --nproc")

    # One folder a run, which the first process writes.
    tuned = config.head == "linear" and config.trainable == "all"
    protocol = "evaluate" if config.evaluate else "finetune" if tuned else config.head
    parent = config.log_folder / "lincls" / protocol
    folder = new_run_folder(parent) if world.first else None
    with closing(Journal(folder, asdict(config), data)) as journal:
        encoder.to(device)
        probe_run = ProbeRun(config, encoder, sets, world, device, journal, trunk, data)
        introduce(probe_run)
        score = score_saved_head if config.evaluate else BY_HEAD[config.head]
        report_outcome(score(probe_run), probe_run)
    return 0


def introduce(probe_run: ProbeRun) -> None:
    """Say what is scored on what."""
    config, sets, journal = probe_run.config, probe_run.sets, probe_run.journal
    journal.say(f"run folder: {journal.folder}")
    source = config.resume or config.pretrained
    journal.say("\n".join(introduction(sets._asdict())))
    processes = f"{probe_run.world.size} process(es) on {probe_run.device.type}"
    journal.say(f"{config.arch} from {source}, {processes}")
    if source == RANDOM:
        journal.say("random weights: this score is the baseline")
    # A probe that goes on reads all of its file.
    elif not config.resume:
        note_other_views(probe_run.trunk, config, journal.say)
        used = ["fc"] if config.evaluate else []
        probe_run.trunk.tell_left_out(journal.say, *used)
    trains = config.head == "linear" and not config.evaluate
    if trains and config.cos and not config.sgdr and min(config.rates()) < config.final_lr:
        journal.warn(f"lr {min(config.rates()):g} rises to final_lr {config.final_lr:g}")


def report_outcome(outcome: Outcome, probe_run: ProbeRun) -> None:
    """The result on the console and in results.json."""
    journal, config = probe_run.journal, probe_run.config
    chosen_on = HELD_OUT if probe_run.sets.held_out else ON_VAL
    # A choice among one is none.
    for row in outcome.table if len(outcome.table) > 1 else ():
        journal.say(", ".join(f"{name} {value:g}" for name, value in row.items()))
    if outcome.chosen:
        found = ", ".join(f"{name} {value:g}" for name, value in outcome.chosen.items())
        journal.say(f"{found}: chosen on {chosen_on}")
    journal.say(f" * {outcome.accuracy}")
    # Only the first process has a folder.
    if journal.folder is None:
        return
    source = config.resume or config.pretrained
    results = {
        "dataset": config.dataset,
        "protocol": outcome.protocol,
        **outcome.accuracy.percent(),
        **outcome.accuracy._asdict(),
        "chosen": outcome.chosen,
        "chosen_on": chosen_on if outcome.chosen else "",
        "table": outcome.table,
        "num_train": len(probe_run.sets.train),
        "checkpoint": source,
        "checkpoint_sha256": probe_run.trunk.sha256 if probe_run.trunk else None,
        **journal.about,
    }
    journal.files.write({journal.folder / "results.json": json_bytes(results)})
    journal.files.check()
    journal.say(f"finished: {journal.folder / 'results.json'}")


# ---- protocols


def score_linear(run: ProbeRun) -> Outcome:
    """Linear heads by SGD, on a frozen trunk or together with it."""
    config, sets, journal = run.config, run.sets, run.journal
    # From the first epoch, or from a checkpoint of a probe.
    probe = HeadTraining(run)
    if config.resume:
        unpack_probe_(probe, checkpoint.load(config.resume), run.trunk)
        journal.say(f"resumed from {config.resume}, next epoch {probe.epoch}")
    if probe.epoch >= config.epochs:
        fault = f"{config.resume!r} has had its {probe.epoch} epochs"
        raise InputError(f"{fault}; raise --epochs to go on, or score it with -e")

    begin, flags = probe.epoch, Flags(run.world)

    # Train, and score each epoch on the pictures that the choice is made by.
    probe.start_training()
    while probe.epoch < config.epochs:
        probe.train_epoch()
        found = probe.score(sets.held_out or sets.val, "choice")
        is_best, head = probe.keep_if_best(found), best_index(found)
        journal.say(f"held out: {found[head]}" if sets.held_out else f" * {found[head]}")
        names = [LAST, BEST] if is_best else [LAST]
        if probe.epoch > config.epochs - KEPT_EPOCHS:
            names.append(f"model_{probe.epoch - 1}.pth.tar")  # probe.epoch is the next one
        if run.world.first:
            save_probe(probe, head, *names)
        flags.exchange(0)  # who waits for the first process's disk says so
    probe.check_trunk_is_unmoved()

    # The score on val, of the best head at its best epoch.
    probe.trained.load_state_dict(probe.best_weights)
    accuracy, epoch = probe.peaks[probe.best]
    if run.world.first and epoch < begin:
        # Reached before --resume: this folder has no file of it yet.
        probe.epoch = epoch + 1
        save_probe(probe, probe.best, BEST)
    if sets.held_out:
        accuracy = probe.score(sets.val, "val")[probe.best]
    of_lr = zip(probe.lrs, probe.peaks, strict=True)
    table = [{"lr": lr, **peak.percent(), "epoch": reached} for lr, (peak, reached) in of_lr]
    protocol = "linear probe" if probe.frozen else "fine-tuning"
    return Outcome(protocol, accuracy, {"lr": probe.lrs[probe.best], "epoch": epoch}, table)


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
    train, held_out, val = (part and features_of_share(run, part) for part in run.sets)
    most, number = max(config.knn_k), len(run.sets.train)
    if most > number:
        run.journal.warn(f"k {most} is above the {number} training pictures: all of them vote")

    # Choose k.
    score = partial(knn_accuracies, num_classes=num_classes, tau=config.knn_t, world=run.world)
    found = score([train], held_out or val, ks=config.knn_k)
    best = best_index(found)
    accuracy = found[best]

    # With held-out pictures val is scored once, and they are neighbours too.
    if held_out is not None:
        (accuracy,) = score([train, held_out], val, ks=[config.knn_k[best]])
    return Outcome("kNN", accuracy, {"k": config.knn_k[best]}, table("k", config.knn_k, found))


def score_logistic(run: ProbeRun) -> Outcome:
    """Logistic regression on frozen features of unit length."""
    world, num_classes = run.world, len(run.sets.train.classes)
    train, held_out, val = (part and features_of_share(run, part) for part in run.sets)

    # Choose the cost of an error against that of large weights. Each fit starts from the one
    # before: its solution is near.
    classifier, found = logistic.zeros(num_classes, train.rows), []
    for cost in logistic.COSTS:
        logistic.fit_(classifier, [train], cost, world)
        found.append(logistic.accuracy(classifier, held_out, world))
    best = best_index(found)
    cost = logistic.COSTS[best]
    if best in (0, len(found) - 1):
        run.journal.warn(f"C {cost:g} is the end of the range tried")

    # Then fit once more, from 0, on everything but val.
    classifier = logistic.zeros(num_classes, train.rows)
    logistic.fit_(classifier, [train, held_out], cost, world)
    accuracy = logistic.accuracy(classifier, val, world)
    rows = table("cost", logistic.COSTS, found)
    return Outcome("logistic regression", accuracy, {"cost": cost}, rows)


def table(name: str, values, found: list[Accuracy]) -> list[dict]:
    """What was found with each value, in percent."""
    return [{name: value, **of.percent()} for value, of in zip(values, found, strict=True)]


BY_HEAD = {"linear": score_linear, "knn": score_knn, "logistic": score_logistic}
