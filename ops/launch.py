"""From a command to processes: one, one per GPU, several on the CPU, torchrun's, or several
nodes'.
"""

import multiprocessing as mp
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from urllib.parse import urlparse

import torch

from ops.distributed import World, is_lost_connection, join_group, leave_group, wait_for_all
from ops.errors import EXIT_CODES, EXIT_STOPPED, InputError, RunFailed
from ops.lifeline import Lifeline, follow_parent
from ops.options import ProcessOptions
from ops.signals import StopRequest, let_requests_through, requests_held

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
LAST_WORDS = 5.0  # seconds that the other processes have when one has failed


@dataclass(frozen=True)
class Seats:
    """The processes of this node among all."""

    first_rank: int
    local_size: int
    size: int
    url: str
    kind: str  # of device: cuda, mps, cpu


def launch(run, config: ProcessOptions) -> int:
    """Call run(config, world, device) in every process this node should have; its exit code.

    One process runs here, without a process group. Under torchrun nothing is spawned.
    """
    kind = device_kind(config.device)
    if all(name in os.environ for name in TORCHRUN):
        rank, size, local_rank = (int(os.environ[name]) for name in TORCHRUN)
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return take_seat(
            local_rank, run, config, Seats(rank - local_rank, local_size, size, "env://", kind)
        )

    local_size = processes_here(config, kind)
    size = local_size * config.num_nodes()
    seats = Seats(
        config.this_node() * local_size, local_size, size, meeting_place(config, size), kind
    )
    if local_size == 1:
        return take_seat(0, run, config, seats)
    return spawn(run, config, seats)


def device_kind(wanted: str) -> str:
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(kind for kind, present in usable.items() if present)
    if not usable[wanted]:
        raise InputError(
            f"device={wanted}: torch finds none on this machine; use --device auto or cpu"
        )
    return wanted


def processes_here(config: ProcessOptions, kind: str) -> int:
    if config.gpu is not None:
        num_gpus = torch.cuda.device_count() if kind == "cuda" else 0
        if config.gpu >= num_gpus:
            raise InputError(
                f"gpu={config.gpu}: this machine shows {num_gpus} GPU(s), numbered from 0"
            )
    if kind == "cpu":
        return config.nproc
    if kind == "cuda" and config.gpu is None and config.multiprocessing_distributed:
        return min(config.ngpu, torch.cuda.device_count())
    return 1


def meeting_place(config: ProcessOptions, size: int) -> str:
    """URL at which all processes meet. Node 0 opens it, so there it has to be free."""
    if config.dist_url == "env://":
        return config.dist_url
    if config.dist_url:
        url = config.dist_url
    elif config.num_nodes() == 1:
        return f"tcp://127.0.0.1:{free_port()}"
    else:
        url = f"tcp://{config.master_addr}:{config.master_port}"
    port = urlparse(url).port
    if port is None:
        raise InputError(f"dist_url={url!r} names no port; expected tcp://host:port")
    if size > 1 and config.this_node() == 0 and not port_is_free(port):
        raise InputError(
            f"port {port} of {url} is in use; choose another with --dist_url tcp://host:port"
        )
    return url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            return True
        except OSError:
            return False


def take_seat(local_rank: int, run, config: ProcessOptions, seats: Seats) -> int:
    """Be one process of the run, from its device to the end of its process group."""
    world = World(seats.first_rank + local_rank, seats.size, seats.local_size)
    device = torch.device(seats.kind)
    if seats.kind == "cuda":
        device = torch.device("cuda", local_rank if config.gpu is None else config.gpu)
        torch.cuda.set_device(device)
    elif world.local_size > 1:
        torch.set_num_threads(max(1, os.cpu_count() // world.local_size))
    backend = config.dist_backend if seats.kind == "cuda" else "gloo"
    store = join_group(world, seats.url, backend)
    let_requests_through()
    if store is None:
        return run(config, world, device)

    lifeline = Lifeline(store, world)
    lifeline.start()
    try:
        code = run(config, world, device)
        wait_for_all(store, world)
    except RuntimeError as error:
        if is_lost_connection(error) and lifeline.someone_is_lost():
            raise RunFailed(lifeline.message()) from error
        raise
    lifeline.stop()
    leave_group(store, world)
    return code


def spawn(run, config: ProcessOptions, seats: Seats) -> int:
    """Start this node's processes and wait for them; requests to stop are passed on.

    If one fails the others are given a moment and then ended.
    """
    context = mp.get_context("spawn")
    processes, reasons = [], []
    with requests_held():  # the processes keep them back until they can answer
        for local_rank in range(seats.local_size):
            reason, speak = context.Pipe(duplex=False)
            process = context.Process(target=sit_down, args=(local_rank, run, config, seats, speak))
            process.start()
            processes.append(process)
            reasons.append(reason)

    def ask_to_stop():
        for process in processes:
            process.terminate()

    with StopRequest(ask_to_stop) as stop:
        failed, said = first_failure(processes, reasons)
        deadline = time.monotonic() + LAST_WORDS
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
            process.kill()
            process.join()
    if failed is None:
        return max(process.exitcode for process in processes)
    code = processes[failed].exitcode
    if code < 0:
        if stop.received and code == -signal.SIGTERM:  # nothing in it that would have saved
            return 128 + signal.SIGTERM
        name = signal.Signals(-code).name
        raise RunFailed(
            f"process {seats.first_rank + failed} was ended by {name}; the others were stopped"
        )
    if said:  # the first to speak; the others may only have missed it
        kind, sentence = said[0]
        raise kind(sentence)
    return code


def first_failure(processes: list, reasons: list) -> tuple[int | None, list]:
    """Wait until all have ended well, or one has not: its number, and what was said until then."""
    running = {process.sentinel: number for number, process in enumerate(processes)}
    listening, said = set(reasons), []
    while running:
        for ready in wait([*running, *listening]):
            if ready in listening:
                listening.remove(ready)
                with suppress(EOFError):
                    said.append(ready.recv())
                continue
            number = running.pop(ready)
            processes[number].join()
            if processes[number].exitcode not in (0, EXIT_STOPPED):
                said += [reason.recv() for reason in listening if reason.poll()]
                return number, said
    return None, said


def sit_down(local_rank: int, run, config: ProcessOptions, seats: Seats, speak) -> None:
    """What a started process does: its seat, and an exit code of its own."""
    follow_parent()
    try:
        code = take_seat(local_rank, run, config, seats)
    except tuple(EXIT_CODES) as error:
        speak.send((type(error), str(error)))
        code = EXIT_CODES[type(error)]
    sys.exit(code)
