"""A run of `lincls.py`: read the trunk and the pictures, score them, report the result."""

from dataclasses import asdict
from pathlib import Path

import torch

from adco.probe.data import ProbeRun, ProbeSets, load_probe_sets
from adco.probe.options import RANDOM, ProbeConfig
from adco.probe.protocols import PROTOCOLS, Outcome
from adco.probe.state import read_encoder
from ops import checkpoint
from ops.distributed import World
from ops.errors import InputError
from ops.files import write_json
from ops.journal import Journal
from ops.run_folder import new_run_folder, provenance

LOGISTIC_HOLDOUT = 0.1  # --head logistic never chooses on val


def run(config: ProbeConfig, world: World, device: torch.device, local_size: int) -> int:
    """Score a trunk as configured, as one process of `world`. Returns the exit code.

    local_size: processes on this node.
    """
    # The trunk, and the pictures. A saved head is scored without a choice.
    encoder, config = read_encoder(config)
    holdout = config.holdout or (LOGISTIC_HOLDOUT if config.head == "logistic" else 0)
    sets = load_probe_sets(config, 0 if config.evaluate else holdout)
    if min(len(part) for part in (sets.train, sets.held_out, sets.val) if part) < world.size:
        raise InputError(
            f"fewer pictures than processes: train {len(sets.train)}, val {len(sets.val)}, "
            f"{world.size} processes; lower --nproc"
        )

    # One folder a run, which the first process writes.
    protocol = protocol_of(config)
    parent = Path(config.save_path) / config.log_path / config.dataset / "lincls" / protocol
    journal = Journal(new_run_folder(parent) if world.first else None)
    try:
        introduce(journal, config, sets, world, device)
        probe_run = ProbeRun(
            config=config,
            encoder=encoder.to(device),
            sets=sets,
            world=world,
            device=device,
            local_size=local_size,
            journal=journal,
        )
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


def introduce(
    journal: Journal, config: ProbeConfig, sets: ProbeSets, world: World, device: torch.device
) -> None:
    """Write the configuration, and say what is scored on what."""
    journal.write_config(asdict(config))
    journal.say(f"run folder: {journal.folder}")
    source = config.resume or config.pretrained
    journal.say(
        f"{config.arch} from {source}: {len(sets.train)} pictures to train on, "
        f"{len(sets.held_out) if sets.held_out else 0} held out, {len(sets.val)} in val, "
        f"{len(sets.train.classes)} classes, {world.size} process(es) on {device.type}"
    )
    if source == RANDOM:
        journal.say("random weights: this score is the baseline")


def report_outcome(outcome: Outcome, probe_run: ProbeRun) -> None:
    """The result on the console and in results.json."""
    journal, config = probe_run.journal, probe_run.config
    if outcome.chosen:
        found = ", ".join(f"{name} {value:g}" for name, value in outcome.chosen.items())
        journal.say(f"{found}: chosen on {outcome.chosen_on}")
    journal.say(f" * {outcome.accuracy}")
    # Only the first process has a folder.
    if journal.folder is None:
        return
    source = config.resume or config.pretrained
    results = {
        "dataset": config.dataset,
        "protocol": outcome.protocol,
        "acc1": outcome.accuracy.acc1,
        "acc5": outcome.accuracy.acc5,
        **outcome.accuracy._asdict(),
        "chosen": outcome.chosen,
        "chosen_on": outcome.chosen_on,
        "table": outcome.table,
        "num_train": len(probe_run.sets.train),
        "checkpoint": source,
        "checkpoint_sha256": None if source == RANDOM else checkpoint.sha256(source),
        "config": asdict(config),
        **provenance(),
    }
    write_json(journal.folder / "results.json", results)
    journal.say(f"finished: {journal.folder / 'results.json'}")
