"""How processes find one another, and how they part."""

import os
import time
from datetime import timedelta
from urllib.parse import urlparse

import torch.distributed as dist

from ops.distributed import World
from ops.errors import RunFailed, some
from ops.waiting import waiting_for


def join_group(world: World, url: str, backend: str, minutes: float = 30.0):
    """Enter the process group. Returns the store through which its processes met.

    minutes: to wait for the others. Raises RunFailed where they do not meet.
    """
    # After a restart by torchrun, its store still holds the keys of the attempt before.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    limit = timedelta(minutes=minutes)
    given = "; RANK and WORLD_SIZE are set in this shell" if url.startswith("env") else ""
    try:
        with waiting_for(lambda: f"process 0, at {url}{given}"):
            store = dist.PrefixStore(f"attempt_{attempt}", open_store(url, world, limit))
        store.set(f"here/{world.rank}", "")
        with waiting_for(lambda: f"{who_is_missing(store, world)} to come to {url}{given}"):
            deadline = time.monotonic() + limit.total_seconds()
            while not store.check([f"here/{rank}" for rank in range(world.size)]):
                if time.monotonic() > deadline:
                    missing = who_is_missing(store, world)
                    raise ValueError(f"{missing} did not come in {minutes:g} minutes")
                time.sleep(0.05)
            dist.init_process_group(
                backend, store=dist.PrefixStore("group", store), rank=world.rank,
                world_size=world.size,
            )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise RunFailed(
            f"the {world.size} processes do not meet at {url}: {first_line(error)}; check that all "
            f"are started, and the address{given}"
        ) from error
    # All have met; what they wait for at the end takes as long as it takes.
    store.set_timeout(timedelta(hours=1))
    return store


def open_store(url: str, world: World, limit: timedelta):
    """A store that all processes can reach. Waits for the first process, not for the others."""
    if url.startswith("file"):
        return next(dist.rendezvous(url, world.rank, world.size))[0]
    host, port = urlparse(url).hostname, urlparse(url).port
    if url.startswith("env"):
        names = ("MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in names if name not in os.environ]:
            raise ValueError(f"{' and '.join(missing)} not set")
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun has a store of its own at this address.
    is_server = world.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return dist.TCPStore(host, port, None, is_server, limit, wait_for_workers=False)


def who_is_missing(store, world: World) -> str:
    """The processes that have not met yet, in words; nothing where all are there."""
    missing = [str(rank) for rank in range(world.size) if not store.check([f"here/{rank}"])]
    return f"process(es) {some(missing)} of {world.size}" if missing else ""


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def wait_for_all(store, world: World) -> None:
    """Return once every process is through with all collectives.

    Not by a collective: who leaves first would close the connections that another still reads.
    """
    store.set(f"through/{world.rank}", "")
    store.wait([f"through/{rank}" for rank in range(world.size)])


def leave_group(store, world: World) -> None:
    """After wait_for_all. The first process goes last, for the store may be in it."""
    if world.rank:
        store.set(f"gone/{world.rank}", "")
    else:
        store.wait([f"gone/{rank}" for rank in range(1, world.size)])
    dist.destroy_process_group()
