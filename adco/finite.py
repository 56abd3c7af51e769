"""Nothing that is not finite reaches the weights, the statistics or the bank.

Whether a step is dropped is a 0-d tensor, 0 or 1, the same on every process. Everything that obeys
it reads it on the device, so that a GPU is never waited for.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ops.distributed import current_world, sum_across_ranks_


@torch.no_grad()
def check_finite(model: nn.Module, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the model's whole gradient, and `dropped`, float32: 1 where on any process that
    length or a value of the other tensors is not finite.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    sums = torch.stack([grad_norm, *(x.sum() for x in others)])  # not finite if any value is not
    faults = (~sums.isfinite().all()).float()
    return grad_norm, sum_across_ranks_(faults, current_world()).clamp_(max=1)


def step_unless_(dropped: Tensor, optimizer: Optimizer) -> None:
    """One step of the optimizer, unless dropped.

    A fused optimizer skips it on the device, but not its first one, which makes the momentum. For
    that one, and for every step of any other optimizer, the host has to read `dropped`.
    """
    if skips_on_device(optimizer):
        # The private way in which GradScaler tells a fused optimizer (torch 2.9 to 2.15). Plain
        # alternative: the branch below, which waits for the device.
        optimizer.found_inf = dropped
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


class BufferSnapshot:
    """The buffers of a model (BatchNorm's statistics and counters) as they were, to go back to."""

    @torch.no_grad()
    def __init__(self, model: nn.Module):
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        # One vector per dtype: hundreds of small copies would cost a GPU more than their numbers.
        self.before = [(buffers, flattened(buffers)) for buffers in by_dtype.values()]

    @torch.no_grad()
    def restore_if_(self, dropped: Tensor) -> None:
        for buffers, before in self.before:
            chosen = torch.where(dropped.bool(), before, flattened(buffers))
            pieces = chosen.split([buffer.numel() for buffer in buffers])
            pieces = [piece.view_as(x) for piece, x in zip(pieces, buffers, strict=True)]
            # Private (torch 2.9 to 2.15). Plain alternative: x.copy_(piece) for each buffer.
            torch._foreach_copy_(buffers, pieces)


def flattened(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])
