"""Learning rates as functions of the epoch (a float: 3.5 is the middle of the fourth epoch)."""

from math import cos, floor, pi


def pretrain_rate(
    epoch: float,
    *,
    epochs: int,
    lr: float,
    shape: int = 1,
    lr_final: float = 6e-4,
    milestones: tuple[int, ...] = (120, 160),
    warmup_epochs: int = 0,
) -> float:
    """Learning rate of the encoder at `epoch` of `epochs`.

    shape 1: cosine from lr to lr_final.  shape 2: quarter cosine, lr cos(pi e / 2E).
    shape 0: lr times 0.1 at each milestone.  All three hold still within an epoch; the warm-up
    rises linearly from 0 with every step.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    epoch = floor(epoch)
    if shape == 1:
        return lr_final + 0.5 * (1 + cos(pi * epoch / epochs)) * (lr - lr_final)
    if shape == 2:
        return lr * cos(pi * epoch / (2 * epochs))
    return lr * 0.1 ** sum(epoch >= milestone for milestone in milestones)


def set_rate(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
