"""Nothing that is not finite reaches the weights, the statistics or the bank.

Whether a step is dropped is a 0-d tensor, 0 or 1, the same on every process. Everything that obeys
it reads it on the device, so that a GPU is never waited for.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ops.distributed import current_world, sum_across_ranks_

MOST_DROPPED = 10  # in a row


@torch.no_grad()
def examine(model: nn.Module, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of the model's whole gradient, and `dropped`, float32: 1 where on any process that norm
    or a value of the other tensors is not finite.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    sums = torch.stack([grad_norm, *(x.sum() for x in others)])  # not finite if any value is not
    faults = (~sums.isfinite().all()).float()
    return grad_norm, sum_across_ranks_(faults, current_world()).clamp_(max=1)


def step_unless_(dropped: Tensor, optimizer: Optimizer) -> None:
    """One step of the optimizer, unless dropped.

    A fused one skips it on the device, but not its first, which lays out a momentum; where that
    is still to be done, and with any other optimizer, the host has to look.
    """
    if skips_on_device(optimizer):
        optimizer.found_inf = dropped  # how GradScaler tells a fused optimizer
        optimizer.step()
        del optimizer.found_inf
    elif not dropped:
        optimizer.step()


def skips_on_device(optimizer: Optimizer) -> bool:
    return all(
        group.get("fused")
        and (
            group.get("momentum") == 0
            or all(optimizer.state.get(p) for p in group["params"] if p.grad is not None)
        )
        for group in optimizer.param_groups
    )


class Streak:
    """Steps dropped in a row, counted on the device."""

    def __init__(self, device: torch.device):
        self.now = self.longest = torch.zeros((), device=device)

    def count_(self, dropped: Tensor) -> None:
        self.now = (self.now + 1) * dropped
        self.longest = torch.maximum(self.longest, self.now)

    def complaint(self, where: str, last: Path | None) -> str:
        """A sentence where so many steps in a row were dropped that no weight will ever move again,
        else nothing. last: the last checkpoint. Waits for the device.
        """
        if self.longest.item() < MOST_DROPPED:
            return ""
        saved = last and last.exists()
        advice = (
            f"go on from {last}, which is good, with" if saved else "nothing is saved yet; take"
        )
        return (
            f"diverged: loss or gradient not finite in {MOST_DROPPED} steps in a row, {where}. "
            f"None of them reached the weights or the bank; {advice} a lower --lr"
        )


class Statistics:
    """The buffers of a model (BatchNorm's statistics and counters) as they were, to go back to."""

    @torch.no_grad()
    def __init__(self, model: nn.Module):
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        # One vector per dtype: hundreds of small copies would cost a GPU more than their numbers.
        self.kept = [(buffers, joined(buffers)) for buffers in by_dtype.values()]

    @torch.no_grad()
    def restore_if_(self, dropped: Tensor) -> None:
        for buffers, before in self.kept:
            chosen = torch.where(dropped.bool(), before, joined(buffers))
            parts = chosen.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(
                buffers, [part.view_as(x) for part, x in zip(parts, buffers, strict=True)]
            )


def joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])
