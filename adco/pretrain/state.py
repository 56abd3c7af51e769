"""A pre-training run as a checkpoint, and back.

Keys shared with the published program: epoch (the next one), arch, best_acc, state_dict (names
module.encoder_q.* and module.encoder_k.*), optimizer, Memory_Bank {W, v}. Ours beside them: config
(JSON), data, num_shuffles, the other fields of Progress, and KEPT.

No generator has a state of its own: views, order and shuffles are functions of the seed and of
positions that are kept here.
"""

import json
import operator
from dataclasses import asdict, dataclass, fields

import torch
from torch.optim import Optimizer

from adco.model import AdCo
from adco.negatives import NegativeBank
from adco.pretrain.options import PretrainConfig
from ops import checkpoint
from ops.errors import InputError, shown

# What a run keeps beside both players and their progress; other programs' files have none of it.
# meter: sums over the unfinished epoch.  watch: signs of a collapse seen so far.  journal_size:
# bytes of metrics.jsonl.  bad_pictures: broken ones, name to reason.  scaler: of the loss in fp16.
# look: what was last looked at.
KEPT = ("meter", "watch", "journal_size", "bad_pictures", "scaler", "look")


# Both encoders, the adversaries, and the encoders' optimizer.
Players = tuple[AdCo, NegativeBank, Optimizer]

# What changes with the numbers that a run is counted in.
COUNTS = {
    "num_keys": "another number of pictures a step: steps and rates are no longer the same",
    "num_pictures": "another number of pictures: the order of this epoch is another one",
    "bn_size": "BatchNorm sees another number of pictures at once: the losses are no longer the "
    "same; processes times --accum_steps decide it",
}


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # the one that is not finished yet
    epoch_step: int = 0  # steps of it that are done
    step: int = 0  # steps taken, start-up aside
    startup_step: int = 0  # steps of the start-up that are done
    playing: bool = False  # whether the start-up is over, so that the adversaries play
    num_keys: int = 0  # M, in which the steps of the epoch are counted; 0: not known
    num_pictures: int = 0  # of the data set; 0: not known
    bn_size: int = 0  # pictures that BatchNorm sees at once; 0: not known
    best_acc: float = 0.0  # best score: kNN accuracy, percent, or effective rank
    best_of: str = "knn"  # which of the two
    after_warmup: bool = True  # whether the cosine begins where the warm-up ends

    def where(self) -> str:
        """In words."""
        if self.playing:
            return f"in epoch {self.epoch} after {self.epoch_step} of its steps"
        return f"in the start-up after {self.startup_step} of its steps"

    def score_by(self, kind: str) -> list[str]:
        """Compare scores of this kind from here on; none: of no kind.

        Returns a sentence where the best one so far is of another kind.
        """
        if kind in ("none", self.best_of):
            return []
        other, before = self.best_acc, self.best_of
        self.best_acc, self.best_of = 0.0, kind
        return [f"the best score so far was one of {shown(before)}, not {kind!r}: void"] * (
            other > 0
        )

    def count_in(self, num_keys: int, num_pictures: int, bn_size: int) -> list[str]:
        """Count in the numbers of this run, in which none of the epoch's pictures is left out.

        Returns a sentence about each difference that changes what is computed.
        """
        if self.num_keys not in (0, num_keys):
            self.epoch_step = self.epoch_step * self.num_keys // num_keys
            self.startup_step = self.startup_step * self.num_keys // num_keys
        new = {"num_keys": num_keys, "num_pictures": num_pictures, "bn_size": bn_size}
        found = []
        for name, meaning in COUNTS.items():
            if getattr(self, name) not in (0, new[name]):
                found.append(f"{meaning} ({getattr(self, name)} before, {new[name]} here)")
            setattr(self, name, new[name])
        return found


def pack(players: Players, progress: Progress, config: PretrainConfig, data=None) -> dict:
    """Everything that a run needs to go on as if it had never stopped.

    data: which pictures it is made of (adco.data.identity).
    """
    model, bank, optimizer = players
    return {
        "arch": config.arch,
        "state_dict": checkpoint.with_module(model.state_dict()),
        "optimizer": plain_optimizer_state(optimizer, config.lr),
        "Memory_Bank": bank.state_dict(),
        "num_shuffles": model.num_shuffles,
        "config": json.dumps(asdict(config)),
        "data": data,
        **asdict(progress),
    }


def unpack_(state: dict, source: str, players: Players, arch: str) -> Progress:
    """Fill the players from a checkpoint of ours, of the published AdCo or of MoCo.

    Returns where the run stands; after a file of MoCo, which has no bank, before the start-up.
    """
    model, bank, optimizer = players
    checkpoint.check_goes_on(state, source, "a pre-training checkpoint")
    if state.get("arch", arch) != arch:
        raise InputError(
            f"{source} holds a {shown(state['arch'])}, this run a {arch}; give the same --arch"
        )
    if not checkpoint.is_state_dict(state["state_dict"]):
        raise InputError(f"{source} holds no state_dict; expected tensors by their names")
    weights = checkpoint.without_module(state["state_dict"])
    # MoCo's file holds a queue of keys too.
    weights = {n: tensor for n, tensor in weights.items() if not n.startswith("queue")}
    checkpoint.load_strictly(model, weights, source)
    checkpoint.load_optimizer_(optimizer, state["optimizer"], source)
    if "Memory_Bank" in state:
        kept = state["Memory_Bank"]
        shape = [*getattr(kept.get("W"), "shape", ())] if isinstance(kept, dict) else []
        where = f"the bank in {source} (--cluster, --moco_dim), W {shape},"
        checkpoint.load_strictly(bank, kept, where)
    model.num_shuffles = state.get("num_shuffles", 0)
    return read_progress(state, source)


def read_progress(state: dict, source: str) -> Progress:
    """Where the run that wrote `state` stood. Raises InputError where epoch or best_acc, which
    other programs write too, is no number.
    """
    known = {field.name: state[field.name] for field in fields(Progress) if field.name in state}
    is_ours = "config" in state
    # Earlier versions of this program say nothing of the warm-up.
    unsaid = {"playing": "Memory_Bank" in state, "after_warmup": not is_ours}
    try:
        progress = Progress(**{**unsaid, **known})
        # The published program keeps an accuracy of training there, as a tensor.
        progress.best_acc = float(progress.best_acc) if is_ours else 0.0
        progress.epoch = operator.index(progress.epoch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"epoch or best_acc in {source} is no number ({shown(error)}); take another checkpoint"
        ) from error
    return progress


def plain_optimizer_state(optimizer: Optimizer, initial_lr: float) -> dict:
    """The optimizer's state as plain torch writes it, for any program to go on from.

    Momentum lies contiguous, whatever the layout of the weights here.
    """
    state = optimizer.state_dict()
    momenta = {
        number: {name: x.contiguous() if torch.is_tensor(x) else x for name, x in kept.items()}
        for number, kept in state["state"].items()
    }
    groups = [{**g, "fused": None, "initial_lr": initial_lr} for g in state["param_groups"]]
    return {"state": momenta, "param_groups": groups}
