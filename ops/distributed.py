"""Processes: who we are, and every collective. Nothing else knows of torch.distributed.

Each function does the right thing when alone. Collectives are called by every process or by none.
"""

import os
import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ops.errors import RunFailed, error_of, outcome_of, shown
from ops.waiting import address_of, interface, meet, the_others, waiting_for

IFNAME = "GLOO_SOCKET_IFNAME"  # the interface that gloo listens at


@dataclass(frozen=True)
class World:
    """This process among all, and among those of its node."""

    rank: int = 0  # among all processes on all nodes
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0


ALONE = World()


def current_world() -> World:
    """Rank and size of the process group, or those of a process alone. Says nothing of nodes."""
    return World(dist.get_rank(), dist.get_world_size()) if has_group() else World()


def has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def meet_all(world: World, url: str, minutes: float = 30.0):
    """Wait for all processes. Returns the store through which they have met.

    minutes: to wait for the others. Raises RunFailed where they do not meet.
    """
    where = url + "; RANK and WORLD_SIZE are set in this shell" * url.startswith("env")
    try:
        with waiting_for(lambda: f"process 0, at {where}"):
            host, port = address_of(url)
            store = open_store(url, host, port, world, timedelta(minutes=minutes))
        store = dist.PrefixStore(meet(store, world.rank, world.size, minutes, where), store)
        if host:
            os.environ.setdefault(IFNAME, interface(store, world.rank, world.size, host))
    except (OSError, RuntimeError, ValueError) as error:
        why = f"the {world.size} processes do not meet at {url}: {shown(error, 300)}"
        raise RunFailed(f"{why}; check that all are started, and the address ({where})") from error
    # All have met; what they wait for at the end takes as long as it takes.
    store.set_timeout(timedelta(hours=1))
    return store


def connect(store, world: World, backend: str) -> None:
    """Enter the process group. Raises RunFailed where the processes cannot connect."""
    place = dict(rank=world.rank, world_size=world.size)
    with told_if_not_connected(world):
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), **place)


@contextmanager
def told_if_not_connected(world: World):
    """Raises RunFailed, naming the interface, where a group cannot be opened in the block."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        why = f"the {world.size} processes have met, but cannot connect: {shown(error, 300)}"
        remedy = f"set {IFNAME} to the interface of this node that the others reach"
        raise RunFailed(f"{why}; {remedy}, here it is {os.environ.get(IFNAME, '')!r}") from error


def open_store(url: str, host: str | None, port: int | None, world: World, limit: timedelta):
    """A store that all processes can reach. Waits for the first process, not for the others."""
    if host is None:
        return next(dist.rendezvous(url, world.rank, world.size))[0]
    # torchrun has a store of its own at this address.
    is_server = world.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # By itself it would listen to the whole network.
    inside = is_server and host in ("127.0.0.1", "localhost") and sys.platform != "win32"
    own = socket.create_server((host, port)).detach() if inside else None
    own_socket = dict(wait_for_workers=False, master_listen_fd=own)
    return dist.TCPStore(host, port, None, is_server, limit, **own_socket)


def wait_for_all(store, world: World) -> None:
    """Return once every process is through with all collectives.

    Not by a collective: who leaves first would close the connections that another still reads.
    """
    store.set(f"through/{world.rank}", "")
    with waiting_for(lambda: "the other processes to end"):
        store.wait([f"through/{rank}" for rank in range(world.size)])


def leave_group(store, world: World) -> None:
    """After wait_for_all. The first process goes last, for the store may be in it."""
    if world.rank:
        store.set(f"gone/{world.rank}", "")
    else:
        store.wait([f"gone/{rank}" for rank in range(1, world.size)])
    dist.destroy_process_group()


def is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed because of another process, not of this one."""
    if isinstance(error, RunFailed):  # no group could be opened, perhaps for want of the store
        return isinstance(error.__cause__, dist.DistError)
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class Flags:
    """Small numbers that processes tell one another, over a group on the CPU."""

    def __init__(self, world: World):
        # With nccl it is the first group of gloo.
        with told_if_not_connected(world):
            self.group = dist.new_group(backend="gloo") if world.size > 1 else None

    def exchange(self, *numbers: int) -> list[int]:
        """Their sums over all processes, for which each waits. Alone: the numbers themselves.

        Python handles signals meanwhile, and the wait is told.
        """
        if self.group is None:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.long)
        work, since = dist.all_reduce(sums, group=self.group, async_op=True), time.monotonic()
        with waiting_for(the_others):
            # Short looks at first, for most waits are short.
            while not work.is_completed():
                time.sleep(min(0.05, (time.monotonic() - since) / 10))
        work.wait()  # raises what went wrong
        return sums.tolist()

    def gather(self, thing) -> list:
        """What each process gives, plain values, in the order of the ranks. Waits for all."""
        if self.group is None:
            return [thing]
        everything = [None] * dist.get_world_size()
        with waiting_for(the_others):
            dist.all_gather_object(everything, thing, group=self.group)
        return everything

    def raise_first(self, error: Exception | None) -> None:
        """Raise the error of the first process that has one, on all of them."""
        outcomes = filter(None, self.gather(error and outcome_of(error)))
        raise error_of(*next(outcomes)) from error


def once_per_node(make, world: World):
    """What make() gives in this node's first process, for all of them. An error is everybody's."""
    if world.size == 1:
        return make()
    flags, size = Flags(world), world.local_size
    # Where nodes differ, or the ranks of a node do not follow one another, each makes its own.
    places = [(each.local_rank, each.local_size) for each in flags.gather(world)]
    if places != [(rank % size, size) for rank in range(world.size)]:
        size = 1
    node, _ = dist.new_subgroups(size, backend="gloo")
    first, made, error = world.rank - world.rank % size, [None], None
    try:
        made = [make() if world.rank == first else None]
    except Exception as failure:
        error = failure
    if flags.exchange(error is not None) != [0]:
        flags.raise_first(error)
    dist.broadcast_object_list(made, first, group=node)
    return made[0]


def sum_across_ranks_(x: Tensor, world: World) -> Tensor:
    """Overwrite x with its sum over processes. No-op alone."""
    if world.size > 1:
        dist.all_reduce(x)
    return x


def mean_across_ranks_(x: Tensor, world: World) -> Tensor:
    """Overwrite x with its mean over processes. No-op alone."""
    return sum_across_ranks_(x, world).div_(world.size) if world.size > 1 else x


def gather_rows(x: Tensor, world: World) -> Tensor:
    """Rows [R N, ...] of all processes in the order of their ranks, from [N, ...] on each.

    Without a gradient.
    """
    if world.size == 1:
        return x
    # The results are written into one tensor: no copy to join them.
    everything = x.new_empty((world.size * len(x), *x.shape[1:]))
    dist.all_gather(list(everything.chunk(world.size)), x.contiguous())
    return everything


def gather_uneven_rows(x: Tensor, world: World) -> Tensor:
    """Like gather_rows, with any number of rows on each process. Waits for the device."""
    if world.size == 1:
        return x
    # A collective wants equal shapes: pad to the longest, cut off again.
    counts = gather_rows(torch.tensor([len(x)], device=x.device), world).tolist()
    most = max(1, *counts)
    padded = x.new_zeros((most, *x.shape[1:]))
    padded[: len(x)] = x
    blocks = gather_rows(padded, world).split(most)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def exchange_rows(x: Tensor, permutation: Tensor, world: World) -> Tensor:
    """Rows permutation[rN : (r+1)N] of the joined batch, where each process r holds N rows of it.

    x: [N, ...].  permutation: [R N] int64 on the CPU, the same on every process. Only rows that
    change process travel. Exchanging with argsort(permutation) undoes it. Pictures that are laid
    out channels last stay so.
    """
    # Sent as they lie in memory, [N, H, W, C]: no copy is made before or after.
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        rows = x.permute(0, 2, 3, 1)  # [N, H, W, C]
        return exchange_contiguous(rows, permutation, world).permute(0, 3, 1, 2)
    return exchange_contiguous(x, permutation, world)


def exchange_contiguous(x: Tensor, permutation: Tensor, world: World) -> Tensor:
    """exchange_rows, of rows that are sent as they come.

    An example: two processes hold the rows a b and c d. The permutation 3 0 2 1 gives d a to the
    first and c b to the second: d and b travel, a and c stay (sent to oneself).
    """
    if world.size == 1:
        return x[permutation.to(x.device, non_blocking=True)]

    # Who is to hold which row, and who has it now.
    wanted = permutation.view(world.size, -1)  # [R, N]  row s: what process s is to hold
    owner = wanted // len(x)

    # What this process sends: of each process's wish list the rows that are here, in its order.
    is_here = owner == world.rank
    outgoing = wanted[is_here] - world.rank * len(x)
    sent = x[outgoing.to(x.device, non_blocking=True)].contiguous()

    # What it receives comes grouped by owner, and within an owner in the order of the wish list.
    receive_counts = torch.bincount(owner[world.rank], minlength=world.size).tolist()
    received = torch.empty_like(sent)  # [N, ...]
    dist.all_to_all_single(received, sent, receive_counts, is_here.sum(dim=1).tolist())

    # Undo the grouping: the stable sort of the owners says where each received row belongs.
    place = torch.argsort(owner[world.rank], stable=True)
    return received[torch.argsort(place).to(x.device, non_blocking=True)]


def all_to_all_blocks(x: Tensor, world: World) -> Tensor:
    """Block s of the result [R, ...] is block r of process s; r is this one. Without a gradient."""
    if world.size == 1:
        return x
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, x.contiguous())
    return received


def in_one_message(collective, tensors: list[Tensor], world: World) -> list[Tensor]:
    """What gather_rows or all_to_all_blocks makes of each of several tensors [B, ...].

    In one message: small ones cost their number rather than their bytes.
    """
    if world.size == 1:
        return tensors
    # Side by side in one row a block, and apart again.
    message = torch.cat([x.flatten(1) for x in tensors], dim=1)
    parts = collective(message, world).split([x[0].numel() for x in tensors], dim=1)
    return [part.reshape(-1, *x.shape[1:]) for part, x in zip(parts, tensors, strict=True)]


def broadcast_from_first_(tensors, world: World) -> None:
    """Overwrite each tensor with rank 0's. No-op alone."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
