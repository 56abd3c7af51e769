"""The encoder on several processes: gradients averaged, and checked to be one encoder."""

import zlib
from contextlib import nullcontext
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ops.distributed import World, current_world, gather_rows, mean_across_ranks_
from ops.errors import RunFailed


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
    for name, bad in zip(tensors, differs, strict=True):
        if bad:
            raise RunFailed(
                f"the processes no longer agree on {name}: the numbers cannot be trusted from here "
                "on; go on from an earlier checkpoint, and look for a faulty device"
            )


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
