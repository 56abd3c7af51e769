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
            FORKS.Process(
                target=_member, args=(rank, function, size, folder, arguments), daemon=True
            )
            for rank in range(size)
        ]
        deadline = time.monotonic() + PATIENCE
        try:
            for member in members:
                member.start()
            while any(member.is_alive() for member in members):
                if any(member.exitcode for member in members) or time.monotonic() > deadline:
                    break  # the others would wait for the one that failed
                time.sleep(0.005)
            codes = [member.exitcode for member in members]
        finally:
            for member in members:
                if member.pid:
                    member.kill()
        said = sorted(Path(folder).glob("*.error"), key=lambda path: path.stat().st_mtime)
        failed = f"exit codes {codes} (None: it was waited for)", *(p.read_text() for p in said)
        assert not any(codes) and None not in codes, "\n".join(failed)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def _member(rank: int, function, size: int, folder: str, arguments: tuple) -> None:
    unblock_requests()  # the fork server may have been started while they were blocked
    torch.set_num_threads(1)
    world = World(rank, size)
    store = None
    try:
        if size > 1:
            store = meet_all(world, f"file://{folder}/meet")
            connect(store, world, "gloo")
        torch.save(function(world, *arguments), Path(folder) / f"{rank}.pt")
        if store is not None:
            wait_for_all(store, world)
            leave_group(store, world)
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        raise
