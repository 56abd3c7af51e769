"""What `lincls.py` can be told. Options shared with pre-training have the same names."""

from dataclasses import dataclass
from math import floor
from typing import ClassVar

from ops.arguments import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, SHARE, free, option, switch
from ops.errors import InputError
from ops.options import ARCHITECTURES, DATASETS, STEMS, RunOptions
from ops.schedule import cosine, steps

PLACES = ("Places205", "Place205")
RANDOM = "random"  # --pretrained random: the baseline
FILES = ("pretrained", "resume")  # options whose file says what its trunk is


@dataclass(frozen=True)
class ProbeConfig(RunOptions):
    """Everything `lincls.py` can be told. Defaults are the published linear probe on ImageNet."""

    FIRST: ClassVar = (
        "data", "dataset", "pretrained", "head", "epochs", "batch_size", "lr",
        "train_fraction", "gpu", "save_path",
    )  # fmt: skip
    GROUPS: ClassVar = RunOptions.GROUPS | {
        "dataset": "pictures", "pretrained": "what is scored", "epochs": "optimisation",
        "resume": "the run",
    }  # fmt: skip
    FOLLOWS: ClassVar = RunOptions.FOLLOWS | dict.fromkeys(("arch", "stem", "channels"), FILES)

    # Pictures
    dataset: str = option("ImageNet", "which data set --data holds", choices=DATASETS + PLACES)
    image_size: int = option(224, "side of the views, pixels", AT_LEAST_1)
    min_scale: float = option(None, "smallest share of a picture (0.08, strong: 0.2)", SHARE)
    flip: int = switch(1, "1: horizontal flips in the training views")
    randcrop: int = switch(0, "1: training views are crops at full resolution")
    train_strong: int = switch(0, "1: training views are those of pre-training")
    train_fraction: float = option(1.0, "share of each class's pictures to train on", SHARE)
    holdout: float = option(
        0.0, "share of train on which lr, epoch, k or C is chosen; 0: on val, as published", BELOW_1
    )

    # What is scored
    pretrained: str = free("", "checkpoint of the trunk, or random")
    arch: str = option(
        None, "architecture; default: what the checkpoint says, else resnet50", names=("-a",),
        choices=ARCHITECTURES,
    )  # fmt: skip
    stem: str = option(None, "first layers; default: what the checkpoint says", choices=STEMS)
    channels: int = option(None, "C of the pictures; default: what the checkpoint says", AT_LEAST_1)
    head: str = option(
        "linear", "linear: trained on views by SGD; knn, logistic: on features extracted once",
        choices=("linear", "knn", "logistic"),
    )  # fmt: skip
    trainable: str = option("fc", "fc: frozen trunk; all: fine-tune", choices=("fc", "all"))
    knn_k: tuple[int, ...] = option((10, 20, 100, 200), "--head knn: neighbours", AT_LEAST_1)
    knn_t: float = option(0.07, "--head knn: temperature of the vote", POSITIVE)
    dropout: float = option(0.0, "share of the features dropped before the linear head", BELOW_1)
    evaluate: int = switch(
        0, "1: train nothing, score the linear head of --resume (else of --pretrained)",
        names=("-e",), nargs="?", const=1,
    )  # fmt: skip

    # Optimisation of the linear head
    epochs: int = option(100, "epochs to train", AT_LEAST_1)
    lr: float = option(10.0, "learning rate of the head", POSITIVE, names=("--learning_rate",))
    lr_sweep: tuple[float, ...] = option((), "rates of one head each", POSITIVE, nargs="*")
    trunk_lr: float = option(0.01, "learning rate of the trunk, with --trainable all", POSITIVE)
    final_lr: float = option(0.01, "lr at the end of --cos 1", AT_LEAST_0, names=("--lr_final",))
    cos: int = switch(1, "1: cosine to final_lr; 0: steps at --schedule")
    schedule: tuple[int, ...] = option((15, 25, 30), "--cos 0: lr drops tenfold there", nargs="*")
    sgdr: int = option(
        0, "1: lr (1 + cos(pi t / 12)) / 2, t the fractional epoch; 2: cosine with warm restarts",
        choices=(0, 1, 2),
    )  # fmt: skip
    sgdr_t0: int = option(10, "--sgdr 2: epochs to the first restart", AT_LEAST_1)
    sgdr_t_mult: int = option(1, "--sgdr 2: growth of the period at a restart", AT_LEAST_1)
    momentum: float = option(0.9, "SGD momentum", BELOW_1)
    weight_decay: float = option(0.0, "weight decay", AT_LEAST_0, names=("--wd",))

    # The run
    resume: str = free("", "checkpoint of a probe to go on from, or with -e to score")

    def __post_init__(self):
        super().__post_init__()
        if not self.pretrained and not self.resume:
            fault = "nothing to score: give a checkpoint with --pretrained"
            raise InputError(f"{fault}, or --pretrained random for the baseline")
        if len(set(self.lr_sweep)) < len(self.lr_sweep):
            raise InputError(f"lr_sweep={self.lr_sweep} names a learning rate twice")
        # Combinations in which an option would have no effect.
        moves_trunk = self.trainable == "all"
        if moves_trunk and self.lr_sweep:
            why = "heads cannot share one that moves"
            raise InputError(f"--lr_sweep needs a frozen trunk (--trainable fc): {why}")
        of_linear = (moves_trunk, self.lr_sweep, self.evaluate, self.resume, self.dropout)
        if self.head != "linear" and any(of_linear):
            others = "--trainable all, --lr_sweep, --evaluate, --resume and --dropout"
            raise InputError(f"--head {self.head} trains no linear head: leave out {others}")

    def rates(self) -> tuple[float, ...]:
        """The learning rate of each head."""
        return self.lr_sweep or (self.lr,)

    def rate(self, epoch: float, lr: float) -> float:
        """What becomes of learning rate `lr` at `epoch`, which counts steps as fractions.

        The published protocols: with --sgdr the rate moves with every step, else it holds still
        within an epoch.
        """
        if self.sgdr == 1:
            return cosine(epoch, 12, lr)  # down for 12 epochs, up for 12
        if self.sgdr == 2:
            period = self.sgdr_t0
            while epoch >= period:
                epoch, period = epoch - period, period * self.sgdr_t_mult
            return cosine(epoch, period, lr)
        epoch = floor(epoch)
        if self.cos:
            return cosine(epoch, self.epochs, lr, self.final_lr)
        return steps(epoch, lr, self.schedule)


# Defaults that differ from ImageNet's. An option that is given always wins.
SMALL = dict(eval_crop=0, epochs=20, lr=1.0, min_scale=0.4)
PROBE_PRESETS = {
    "dataset": {
        "cifar10": dict(SMALL, image_size=32),
        "cifar100": dict(SMALL, image_size=32),
        "stl10": dict(SMALL, image_size=96),
        "digits": dict(SMALL, image_size=28, flip=0, epochs=10, lr=0.1, min_scale=0.8),
    },
    "trainable": {"all": dict(lr=0.5, final_lr=0.0, epochs=20)},
}
