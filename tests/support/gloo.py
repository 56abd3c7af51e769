"""Run a function in several processes of a gloo group, and hand back what each returned."""

import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from ops.distributed import World, connect, leave_group, meet_all, wait_for_all
from ops.signals import unblock_requests
from tests.conftest import FORKS

MOST = 3  # processes
PATIENCE = 240  # seconds


@cache
def pool():
    """Processes that wait for work. Each does one piece and is replaced: a second process group in
    it could meet what the first has left.
    """
    return FORKS.Pool(MOST, be_ready, maxtasksperchild=1)


def be_ready() -> None:
    """To find this function a process has to import this module, before there is work."""
    unblock_requests()  # the fork server may have been started while they were blocked


def in_processes(function, size: int, *arguments) -> list:
    """[function(world, *arguments) of each rank]; importable function, savable results."""
    assert size <= MOST
    with tempfile.TemporaryDirectory() as folder:
        members = [
            pool().apply_async(_member, (rank, function, size, folder, arguments))
            for rank in range(size)
        ]
        deadline = time.monotonic() + PATIENCE
        while not all(member.ready() for member in members):
            failed = any(member.ready() and not member.successful() for member in members)
            if failed or time.monotonic() > deadline:
                pool().terminate()  # the others would wait for the one that failed
                pool.cache_clear()
                break
            time.sleep(0.01)
        for member in sorted(members, key=lambda member: not member.ready()):
            member.get(timeout=0)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def _member(rank: int, function, size: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    world = World(rank, size)
    store = None
    if size > 1:
        store = meet_all(world, f"file://{folder}/meet")
        connect(store, world, "gloo")
    torch.save(function(world, *arguments), Path(folder) / f"{rank}.pt")
    if store is not None:
        wait_for_all(store, world)
        leave_group(store, world)
