"""A run of `lincls.py`: read the trunk and the pictures, score them, report the result."""

from dataclasses import asdict
from pathlib import Path

import torch

from adco.data.datasets import introduction
from adco.data.identity import check_same_everywhere, identity
from adco.probe.data import ProbeRun, load_probe_sets
from adco.probe.options import RANDOM, ProbeConfig
from adco.probe.protocols import PROTOCOLS, Outcome
from adco.probe.state import read_encoder
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


def run(config: ProbeConfig, world: World, device: torch.device) -> int:
    """Score a trunk as configured, as one process of `world`. Returns the exit code."""
    # The trunk, and the pictures. A saved head is scored without a choice.
    encoder, config, trunk = read_encoder(config.with_global_batch(world.size, world.local_size))
    holdout = config.holdout or (LOGISTIC_HOLDOUT if config.head == "logistic" else 0)
    sets = load_probe_sets(config, 0 if config.evaluate else holdout, world)
    data = identity(sets._asdict())
    check_same_everywhere(data, Flags(world))
    if min(len(part) for part in (sets.train, sets.held_out, sets.val) if part) < world.size:
        raise InputError(
            f"fewer pictures than processes: train {len(sets.train)}, val {len(sets.val)}, "
            f"{world.size} processes; lower --nproc"
        )

    # One folder a run, which the first process writes.
    protocol = protocol_of(config)
    parent = Path(config.save_path) / config.log_path / config.dataset / "lincls" / protocol
    folder = new_run_folder(parent) if world.first else None
    journal = Journal(folder, asdict(config), data)
    try:
        known = (config, encoder.to(device), sets, world, device, journal, trunk, data)
        probe_run = ProbeRun(*known)
        introduce(probe_run)
        report_outcome(PROTOCOLS[protocol](probe_run), probe_run)
    finally:
        journal.close()
    return 0


def protocol_of(config: ProbeConfig) -> str:
    if config.evaluate:
        return "evaluate"
    if config.head == "linear" and config.trainable == "all":
        return "finetune"
    return config.head


def introduce(probe_run: ProbeRun) -> None:
    """Say what is scored on what."""
    config, sets, journal = probe_run.config, probe_run.sets, probe_run.journal
    journal.say(f"run folder: {journal.folder}")
    source = config.resume or config.pretrained
    journal.say("\n".join(introduction(sets._asdict())))
    journal.say(
        f"{config.arch} from {source}, {probe_run.world.size} process(es) on "
        f"{probe_run.device.type}"
    )
    if source == RANDOM:
        journal.say("random weights: this score is the baseline")
    # A probe that goes on reads all of its file.
    elif not config.resume:
        used = ["fc"] if config.evaluate else []
        probe_run.trunk.tell_left_out(journal.say, *used)
    if config.rate_rises() and config.head == "linear" and not config.evaluate:
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
