"""Learning rates as functions of the epoch; which of them a run takes is said by its options."""

from math import cos, pi


def cosine(epoch: float, period: float, high: float, low: float = 0.0) -> float:
    """Half a cosine from `high` at epoch 0 to `low` at `period`."""
    return low + 0.5 * (1 + cos(pi * epoch / period)) * (high - low)


def steps(epoch: float, high: float, milestones: tuple[int, ...]) -> float:
    """`high` times 0.1 at each milestone."""
    return high * 0.1 ** sum(epoch >= milestone for milestone in milestones)


def set_rate(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
