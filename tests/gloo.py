"""Run a function in several processes of a gloo group, and hand back what each returned."""

import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp

from ops.distributed import World, gather_rows, join_group, leave_group


def in_processes(function, size: int, *arguments) -> list:
    """[function(world, *arguments) of each rank]; importable function, savable results."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_member, (function, size, folder, arguments), nprocs=size)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def _member(rank: int, function, size: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    world = World(rank, size, size)
    join_group(world, f"file://{folder}/meet", "gloo")
    torch.save(function(world, *arguments), Path(folder) / f"{rank}.pt")
    gather_rows(torch.ones(1), world)  # nobody leaves before all have come
    leave_group()
