"""What a training step needs around torch: one encoder on several processes, and steps that are
dropped.

Nothing that is not finite reaches the weights, the statistics or the bank. Whether a step is
dropped is a 0-d tensor, 0 or 1, the same on every process. Everything that obeys it reads it on
the device, so that a GPU is never waited for.
"""

import zlib
from contextlib import nullcontext
from inspect import signature

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ops.distributed import World, current_world, gather_rows, mean_across_ranks_, sum_across_ranks_
from ops.errors import RunFailed

# ---- one encoder on several processes


def wrap_encoder(model: nn.Module, world: World) -> nn.Module:
    """The model with gradients averaged over processes; itself when alone.

    Buffers stay each process's own: BatchNorm in train mode does not read them.
    """
    if world.size == 1:
        return model
    # torch 2.14 renamed this option.
    options = signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    return DistributedDataParallel(model, **{switch: False})


def settle_buckets_(model: nn.Module, inputs) -> None:
    """A forward and backward pass that counts for nothing, before the first step.

    After its first one DistributedDataParallel spreads the gradients anew over its buckets, and the
    place in a bucket decides in which order three or more processes are added. A run that goes on
    has to add as one that never stopped. model(inputs): a list of tensors.
    """
    if isinstance(model, DistributedDataParallel):
        buffers = BufferSnapshot(model)
        sum(output.float().sum() for output in model(inputs)).backward()
        model.zero_grad(set_to_none=True)
        buffers.restore_if_(torch.ones(()))


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def averaging(model: nn.Module, now: bool):
    """Context of a forward and backward pass: with `now` False the gradients stay here, to be
    averaged with those of a later pass.
    """
    # Alone, or with the last micro-batch, there is nothing to hold back.
    keeps = isinstance(model, DistributedDataParallel) and not now
    return model.no_sync() if keeps else nullcontext()


def average_gradients_(model: nn.Module) -> None:
    """Average over processes what DistributedDataParallel has not averaged already."""
    world = current_world()
    if world.size > 1 and not isinstance(model, DistributedDataParallel):
        for parameter in model.parameters():
            if parameter.grad is not None:
                mean_across_ranks_(parameter.grad, world)


def check_ranks_agree(tensors: dict[str, Tensor], world: World) -> None:
    """Raise RunFailed naming the first tensor whose bytes differ between processes."""
    if world.size == 1:
        return
    # A few bytes a tensor travel, not the tensor.
    checksums = torch.tensor([checksum(tensor) for tensor in tensors.values()])
    device = next(iter(tensors.values())).device
    everyone = gather_rows(checksums.to(device)[None], world)  # [R, number of tensors]
    differs = (everyone != everyone[0]).any(dim=0).tolist()
    if bad := [name for name, differ in zip(tensors, differs, strict=True) if differ]:
        remedy = "go on from an earlier checkpoint, and look for a faulty device"
        why = f"the processes no longer agree on {bad[0]}"
        raise RunFailed(f"{why}: the numbers cannot be trusted from here on; {remedy}")


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


# ---- steps that are dropped


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
    that one, and for every step of any other optimizer or on MPS, the host has to read `dropped`.
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
    for group in optimizer.param_groups:
        # The kernels of MPS have obeyed found_inf since 2026 only.
        obeys = group.get("fused") and group["params"][0].device.type != "mps"
        begun = all(optimizer.state.get(p) for p in group["params"] if p.grad is not None)
        if not (obeys and (group.get("momentum") == 0 or begun)):
            return False
    return True


class Descent:
    """One step of an encoder, which is dropped where something is not finite. scaler: for fp16."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, scaler: GradScaler | None):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.buffers = BufferSnapshot(model)
        optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, scaled up for fp16."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def finish(self, *watched: Tensor) -> tuple[Tensor, Tensor]:
        """The step, unless the gradient or a watched tensor is not finite: then the buffers go back
        too. Returns the gradient's norm and `dropped`.
        """
        average_gradients_(self.model)
        # Take the scale of fp16 off, and find the next one.
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
            self.scaler.update()
        grad_norm, dropped = check_finite(self.model, *watched)
        step_unless_(dropped, self.optimizer)
        self.buffers.restore_if_(dropped)
        return grad_norm, dropped


class BufferSnapshot:
    """The buffers of a model (BatchNorm's statistics and counters) as they were, to go back to."""

    @torch.no_grad()
    def __init__(self, model: nn.Module):
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        # One vector per dtype: hundreds of small copies would cost a GPU more than their numbers.
        self.before = [
            (buffers, _flatten_dense_tensors(buffers).clone())  # of one alone it is a view
            for buffers in by_dtype.values()
        ]

    @torch.no_grad()
    def restore_if_(self, dropped: Tensor) -> None:
        for buffers, before in self.before:
            chosen = torch.where(dropped.bool(), before, _flatten_dense_tensors(buffers))
            # Private (torch 2.9 to 2.15). Plain alternative: x.copy_(piece) for each buffer.
            torch._foreach_copy_(buffers, _unflatten_dense_tensors(chosen, buffers))
