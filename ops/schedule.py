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


def probe_rate(
    epoch: float,
    *,
    epochs: int,
    lr: float,
    cosine: bool = True,
    final_lr: float = 0.01,
    milestones: tuple[int, ...] = (15, 25, 30),
    sgdr: int = 0,
    sgdr_t0: int = 10,
    sgdr_t_mult: int = 1,
) -> float:
    """Learning rate of a classifier at `epoch` of `epochs` (the published protocols).

    sgdr 1: lr (1 + cos(pi t / 12)) / 2 with every step: down for 12 epochs, up for 12.
    sgdr 2: cosine from lr to 0 over sgdr_t0 epochs, then again over sgdr_t_mult times as many, ...
    sgdr 0: cosine from lr to final_lr, or lr times 0.1 at each milestone; still within an epoch.
    """
    if sgdr == 1:
        return 0.5 * lr * (1 + cos(pi * epoch / 12))
    if sgdr == 2:
        period = sgdr_t0
        while epoch >= period:
            epoch, period = epoch - period, period * sgdr_t_mult
        return 0.5 * lr * (1 + cos(pi * epoch / period))
    epoch = floor(epoch)
    if cosine:
        return final_lr + 0.5 * (1 + cos(pi * epoch / epochs)) * (lr - final_lr)
    return lr * 0.1 ** sum(epoch >= milestone for milestone in milestones)


def set_rate(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
