"""The encoder in DistributedDataParallel: gradients averaged over processes."""

from contextlib import nullcontext
from inspect import signature

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ops.distributed import World, current_world, mean_across_ranks_


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
