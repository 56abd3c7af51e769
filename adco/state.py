"""A pre-training run as a checkpoint, and back.

Keys shared with the published program: epoch (the next one), arch, best_acc, state_dict (names
module.encoder_q.* and module.encoder_k.*), optimizer, Memory_Bank {W, v}. Ours beside them: config
(JSON), num_shuffles, step, knn_random.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer

from adco.model import AdCo
from adco.negatives import NegativeBank
from ops import checkpoint
from ops.arguments import from_dict
from ops.errors import InputError
from ops.pretrain_options import PretrainConfig


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # the next one
    step: int = 0  # steps taken, start-up aside
    best_acc: float = 0.0  # best kNN score, percent
    knn_random: float | None = None  # kNN score of the random weights, percent


def pack(
    model: AdCo,
    bank: NegativeBank,
    optimizer: Optimizer,
    progress: Progress,
    config: PretrainConfig,
) -> dict:
    """Everything that a run needs to go on as if it had never stopped."""
    return {
        "arch": config.arch,
        "state_dict": checkpoint.with_module(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "Memory_Bank": bank.state_dict(),
        "num_shuffles": model.num_shuffles,
        "config": json.dumps(asdict(config)),
        **asdict(progress),
    }


def unpack_(
    state: dict, source: str, model: AdCo, bank: NegativeBank, optimizer: Optimizer, arch: str
) -> tuple[Progress, bool]:
    """Fill model, bank and optimizer from a checkpoint of ours, of the published AdCo or of MoCo.

    Returns where the run stands, and whether the checkpoint held a bank (MoCo's do not).
    """
    for key in ("state_dict", "epoch", "optimizer"):
        if key not in state:
            raise InputError(
                f"{source} has no {key!r}; to go on from it, it has to be a pre-training checkpoint"
            )
    if state.get("arch", arch) != arch:
        raise InputError(
            f"{source} holds a {state['arch']}, this run a {arch}; give --arch {state['arch']}"
        )
    weights = checkpoint.without_module(state["state_dict"])
    weights = {
        name: value for name, value in weights.items() if not name.startswith("queue")
    }  # MoCo's keys
    checkpoint.load_strictly(model, weights, source)
    load_optimizer_(optimizer, state["optimizer"], source)
    has_bank = "Memory_Bank" in state
    if has_bank:
        checkpoint.load_strictly(
            bank, state["Memory_Bank"], f"the bank in {source} (--cluster, --moco_dim)"
        )
    model.num_shuffles = state.get("num_shuffles", 0)
    progress = Progress(
        epoch=state["epoch"],
        step=state.get("step", 0),
        best_acc=float(state.get("best_acc", 0)),
        knn_random=state.get("knn_random"),
    )
    return progress, has_bank


def load_optimizer_(optimizer: Optimizer, state: dict, source: str) -> None:
    """Load SGD's momentum, kept over the query encoder's parameters alone or over both encoders'.

    The key encoder's come last and have no momentum, so the numbering is the same. Rates, decay and
    the kind of kernel stay those of this run.
    """
    own = optimizer.state_dict()["param_groups"]
    try:
        (group,) = state["param_groups"]
        if len(group["params"]) not in (len(own[0]["params"]), len(own[0]["params"]) // 2):
            raise ValueError(f"{len(group['params'])} parameters for {len(own[0]['params'])}")
        optimizer.load_state_dict({"state": state["state"], "param_groups": own})
        for parameter, kept in optimizer.state.items():
            if kept.get("momentum_buffer") is not None:
                # Laid out as the parameter: a fused step walks both in the order of memory.
                laid_out = torch.empty_like(parameter, requires_grad=False)
                if kept["momentum_buffer"].shape != parameter.shape:
                    raise ValueError(f"momentum {tuple(kept['momentum_buffer'].shape)}")
                kept["momentum_buffer"] = laid_out.copy_(kept["momentum_buffer"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the optimizer state in {source} does not fit this model: {error}"
        ) from error


def newest_with(config: PretrainConfig, log_folder: Path) -> tuple[Path, dict] | None:
    """The newest usable checkpoint below a folder that was made with this configuration, and its
    content.
    """
    for path in sorted(
        log_folder.rglob("checkpoint_*.pth.tar"), key=lambda p: p.stat().st_mtime, reverse=True
    ):
        try:
            made_with = json.loads((path.parent / "config.json").read_text())["config"]
            if from_dict(PretrainConfig, made_with).changes_numbers() == config.changes_numbers():
                return path, checkpoint.load(path)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # torn, or not ours: the one before it may do
            continue
    return None
