"""Run a function in several processes of a gloo group, and hand back what each returned."""

import tempfile
import time
import traceback
from pathlib import Path

import torch

from ops.distributed import World, connect, leave_group, meet_all, wait_for_all
from ops.signals import unblock_requests
from tests.conftest import FORKS

PATIENCE = 240  # seconds


def in_processes(function, size: int, *arguments) -> list:
    """[function(world, *arguments) of each rank]; importable function, savable results."""
    with tempfile.TemporaryDirectory() as folder:
        members = [
            FORKS.Process(target=_member, args=(rank, function, size, folder, arguments))
            for rank in range(size)
        ]
        for member in members:
            member.start()
        deadline = time.monotonic() + PATIENCE
        while any(member.is_alive() for member in members):
            # The others would wait for one that failed.
            if any(member.exitcode for member in members) or time.monotonic() > deadline:
                for member in members:
                    member.kill()
            time.sleep(0.005)
        said = "".join(path.read_text() for path in Path(folder).glob("*.error"))
        assert not any(member.exitcode for member in members), said
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def _member(rank: int, function, size: int, folder: str, arguments: tuple) -> None:
    unblock_requests()  # the fork server may have been started while they were blocked
    torch.set_num_threads(1)
    world = World(rank, size)
    store = None
    if size > 1:
        store = meet_all(world, f"file://{folder}/meet")
        connect(store, world, "gloo")
    try:
        torch.save(function(world, *arguments), Path(folder) / f"{rank}.pt")
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        raise
    if store is not None:
        wait_for_all(store, world)
        leave_group(store, world)
