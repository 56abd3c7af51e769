"""A probe's files: the trunk and the head it starts from, and its own checkpoints.

Keys shared with the published program: epoch (the next one), arch, state_dict (names module.*, the
best head as fc), best_acc1, optimizer. Ours beside them: config (JSON), heads, peaks, best.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from adco.encoder import build_trunk, read_trunk
from adco.probe.linear import Best, HeadTraining
from adco.probe.options import RANDOM, ProbeConfig
from ops import checkpoint
from ops.errors import InputError
from ops.metrics import Accuracy

KEPT_EPOCHS = 20  # the last epochs whose checkpoints stay


def read_encoder(config: ProbeConfig) -> tuple[ResNet, ProbeConfig]:
    """The trunk to score, with a fresh `fc`, and the configuration with its arch and stem."""
    # The baseline has no file that could name its architecture.
    if config.pretrained == RANDOM and not config.resume:
        config = replace(config, arch=config.arch or "resnet50", stem=config.stem or "imagenet")
        torch.manual_seed(config.seed)
        return build_trunk(config.arch, config.stem), config
    found = read_trunk(config.resume or config.pretrained, arch=config.arch)
    if config.stem:
        found = replace(found, stem=config.stem)
    return found.build(), replace(config, arch=found.arch, stem=found.stem)


def load_classifier_(head: nn.Linear, path: str) -> bool:
    """Fill a head with the classifier `fc` of a file. Returns False where the file has none."""
    state = checkpoint.load(path)
    weights = checkpoint.without_module(state.get("state_dict", state))
    # A projection head of two layers is no classifier: it has fc.0.weight, ...
    found = {name: weights[f"fc.{name}"] for name in ("weight", "bias") if f"fc.{name}" in weights}
    if len(found) < 2:
        return False
    source = f"the classifier in {path!r}, for the {head.out_features} classes of this data set,"
    checkpoint.load_strictly(head, found, source)
    return True


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
        "heads": probe.model.heads.state_dict(),
        "peaks": [[*accuracy, epoch] for accuracy, epoch in probe.peaks],
        "best": {**best._asdict(), "accuracy": list(best.accuracy)},
    }


def unpack_probe_(probe: HeadTraining, state: dict, source: str) -> None:
    """Let a probe go on from a checkpoint of ours, or of the published program (one head)."""
    for key in ("epoch", "state_dict", "optimizer"):
        if key not in state:
            raise InputError(
                f"{source!r} has no {key!r}; to go on from it, it has to be a probe's checkpoint"
            )

    # The heads. Published checkpoints have one, as fc; heads are named by their number, here 0.
    names = checkpoint.without_module(state["state_dict"])
    fc = {f"0.{name[3:]}": value for name, value in names.items() if name.startswith("fc.")}
    heads: dict[str, Tensor] = state.get("heads", fc)
    checkpoint.load_strictly(
        probe.model.heads, heads, f"the heads in {source} (--lr_sweep, --dataset)"
    )

    # Momentum, epoch and scores: whatever the next step depends on.
    try:
        probe.optimizer.load_state_dict(state["optimizer"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"the optimizer state in {source} does not fit this probe: {error}"
        ) from error
    probe.epoch = state["epoch"]
    if "best" in state:
        best = Best(**state["best"])
        probe.best = best._replace(accuracy=Accuracy(*best.accuracy))
        probe.peaks = [(Accuracy(*row[:3]), row[3]) for row in state["peaks"]]


def save_probe(probe: HeadTraining, folder: Path, head: int, is_best: bool) -> None:
    """Write the checkpoints due after an epoch. is_best: no epoch before it scored as high."""
    state = pack_probe(probe, head)
    # probe.epoch is the next one already.
    names = ["checkpoint.pth.tar"]
    if is_best:
        names.append("model_best.pth.tar")
    if probe.epoch > probe.config.epochs - KEPT_EPOCHS:
        names.append(f"model_{probe.epoch - 1}.pth.tar")
    for name in names:
        checkpoint.save(state, folder / name)
